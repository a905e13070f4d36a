"""Starts real training processes quickly: forked from a server that has imported the libraries once (without a GPU).

Each process is told its rank by RANK, WORLD_SIZE and MASTER_PORT, as srun or torchrun would, and can be killed like any other.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from tests.ports import free_port

# With a GPU every process starts by itself: some libraries (bitsandbytes, torchao) start CUDA when they are imported, and no
# process forked afterwards can use it.
_context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")
if not torch.cuda.is_available():
    _context.set_forkserver_preload(["tests.integration.harness_preload"])


def _main(
    target: str, runs: str, environment: dict[str, str], output: str, arrange: Callable[[int], None] | None
) -> None:
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from sft_dist import train

    if arrange is not None:
        arrange(int(environment.get("RANK", "0")))
    code = train.main([target, "--runs", runs])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start(
    target: Path, runs: Path, world_size: int = 1, arrange: Callable[[int], None] | None = None
) -> list[BaseProcess]:
    """One process a rank. `arrange(rank)` is called in each before it trains; it must be a function that can be pickled."""
    runs.mkdir(parents=True, exist_ok=True)
    processes: list[BaseProcess] = []
    port = free_port()
    for rank in range(world_size):
        environment = {"OMP_NUM_THREADS": "1", "SFT_DIST_CACHE": os.environ["SFT_DIST_CACHE"]}
        if world_size > 1:
            environment |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "ACCELERATE_USE_CPU": "true",
            }
        arguments = (str(target), str(runs), environment, str(runs / "output.log"), arrange)
        process = _context.Process(target=_main, args=arguments)
        process.start()
        processes.append(process)
    return processes


def finish(processes: list[BaseProcess], runs: Path, expect: int = 0, timeout: float = 180) -> None:
    """Wait for all; their exit codes must be `expect`."""
    for process in processes:
        process.join(timeout)
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
    assert codes == [expect] * len(processes), (codes, (runs / "output.log").read_text()[-4000:])


def run(
    target: Path, runs: Path, world_size: int = 1, expect: int = 0, arrange: Callable[[int], None] | None = None
) -> Path:
    """Train to the end. Returns the run folder."""
    finish(start(target, runs, world_size, arrange), runs, expect)
    return the_run(runs)


def the_run(runs: Path) -> Path:
    (folder,) = (path.parent for path in runs.glob("*/*/recipe.json"))
    return folder


def wait_for_step(runs: Path, step: int, processes: list[BaseProcess], timeout: float = 120) -> None:
    """Until some run under `runs` has logged `step`, or the processes are gone."""
    end = time.monotonic() + timeout
    while not any(max(losses(path.parent), default=0) >= step for path in runs.glob("*/*/metrics.jsonl")):
        assert time.monotonic() < end, f"step {step} was not reached"
        if not any(process.is_alive() for process in processes):
            return
        time.sleep(0.002)


def signal_at(step: int, whom: int, number: int, rank: int) -> None:
    """`arrange=partial(signal_at, 7, 0, SIGTERM)`: rank 0 gets it after step 7, however quick the training and busy the machine."""
    from sft_dist.training.metrics_logger import MetricsLogger

    if rank != whom:
        return
    undisturbed = MetricsLogger.log_step

    def then_signal(metrics: MetricsLogger, *values: Any) -> None:
        undisturbed(metrics, *values)
        if metrics.step == step:
            os.kill(os.getpid(), number)

    MetricsLogger.log_step = then_signal  # type: ignore[assignment,method-assign]


def killed_at(target: Path, runs: Path, step: int, world_size: int = 1, timeout: float = 180) -> None:
    """A training whose rank 0 kills itself after `step`, before that step is saved."""
    processes = start(target, runs, world_size, partial(signal_at, step, 0, signal.SIGKILL))
    processes[0].join(timeout)
    code = processes[0].exitcode
    kill(processes)
    assert code == -signal.SIGKILL, (code, (runs / "output.log").read_text()[-4000:])


def kill(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def metrics(folder: Path, kind: str = "train") -> dict[int, dict[str, Any]]:
    """Step -> the last record of that step."""
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]  # the last may be half written
    return {record["step"]: record for record in records if record["kind"] == kind}


def losses(folder: Path) -> dict[int, float]:
    return {step: record["loss"] for step, record in metrics(folder).items()}


def weights(folder: Path, step: int) -> dict[str, bytes]:
    """Name -> raw bytes of every tensor of a checkpoint's model."""
    (file,) = (folder / "checkpoints" / f"step-{step:08d}" / "model").glob("*.safetensors")
    with safe_open(file, "pt") as tensors:
        return {name: tensors.get_tensor(name).numpy().tobytes() for name in tensors.keys()}  # noqa: SIM118
