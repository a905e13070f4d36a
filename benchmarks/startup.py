"""Times the commands that should feel instant, beside `accelerate launch --help`.

    python benchmarks/startup.py [rounds]

The commands take turns, so that a busy machine slows all of them alike, and the fastest of the rounds counts. Exits with 1 when a
goal is missed: of the time of `accelerate launch --help`, `--help` takes at most 0.07, and `plan`, with its rows already counted, 0.2.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
QUICKSTART = "recipes/text-classification/quickstart.yaml"
BASELINE = "accelerate launch --help"
LAUNCH = [sys.executable, "-m", "launch"]
COMMANDS = {
    BASELINE: [sys.executable, "-m", "accelerate.commands.launch", "--help"],
    "sft-dist --help": [*LAUNCH, "--help"],
    "sft-dist plan": [*LAUNCH, "plan", QUICKSTART],
    "sft-dist status": [*LAUNCH, "status"],
}
GOALS = {"sft-dist --help": 0.07, "sft-dist plan": 0.2}  # shares of the baseline's time
MATRIX = "matrix:\n  train.lr: [{lrs}]\n  train.seed: [{seeds}]\n"
MANY_RUNS = (
    "import launch.cli; launch.cli._start_fast(); import launch.planning, pathlib, sys;"
    " launch.planning.plan_runs(sys.argv[1], [], pathlib.Path('runs'))"
)
GOAL_MANY_RUNS_S = 2.0


def main(rounds: int) -> int:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    for command in COMMANDS.values():
        _timed(command, env)  # compiles modules, fills the cache of rows
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            times[name].append(_timed(command, env))
    fastest = {name: 1000 * min(values) for name, values in times.items()}
    shares = {name: time_ms / fastest[BASELINE] for name, time_ms in fastest.items()}
    print(f"fastest of {rounds} rounds, taking turns\n")
    print(f"{'command':<28}{'ms':>8}{'share':>9}{'goal':>8}")
    for name, time_ms in fastest.items():
        print(f"{name:<28}{time_ms:>8.0f}{shares[name]:>9.3f}{GOALS.get(name, ''):>8}")
    sweep_s = _plan_many_runs(env)
    print(f"\n10,000 runs expanded and planned: {sweep_s:.2f} s (goal {GOAL_MANY_RUNS_S:.0f} s), imports not counted")
    missed = [name for name, goal in GOALS.items() if shares[name] > goal]
    if sweep_s > GOAL_MANY_RUNS_S:
        missed.append("10,000 runs")
    for name in missed:
        print(f"goal missed: {name}")
    return int(bool(missed))


def _timed(command: list[str], env: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def _plan_many_runs(env: dict[str, str]) -> float:
    """Seconds for a 100 x 100 matrix over the quickstart; the time of the imports is measured and subtracted."""
    lrs = ", ".join(f"{number}.0e-5" for number in range(1, 101))
    seeds = ", ".join(str(number) for number in range(1, 101))
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "many.yaml"
        recipe.write_text((ROOT / QUICKSTART).read_text() + MATRIX.format(lrs=lrs, seeds=seeds))
        program = [sys.executable, "-c", MANY_RUNS]
        _timed([*program, QUICKSTART], env)
        total = statistics.median(_timed([*program, str(recipe)], env) for _ in range(3))
        imports = statistics.median(_timed([*program, QUICKSTART], env) for _ in range(3))
    return total - imports


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 9))
