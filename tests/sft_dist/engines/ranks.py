"""Runs a function as every rank of a process group: real processes and real gloo, forked from a server that has imported
the libraries once, so that a test costs about a second.

    losses = on_ranks(2, train, options)    # train(options) on rank 0 and 1; what each returned, in the order of ranks
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any

from tests.ports import free_port

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.integration.harness_preload"])  # one server a test session, so one list


def on_ranks(
    world_size: int,
    function: Callable[..., Any],
    *arguments: Any,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 900,
) -> list[Any]:
    """`function` is a module's own, and what it takes and returns can be pickled. `environment` is set before it runs,
    besides what torchrun would set. Raises RuntimeError with the traceback of the first rank that failed."""
    port = str(free_port())
    pipes, processes = [], []
    for rank in range(world_size):
        settings = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **(environment or {}),
        }  # fmt: skip
        ours, theirs = _context.Pipe(duplex=False)
        process = _context.Process(target=_rank, args=(theirs, settings, function, arguments))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        return _answers(pipes, time.monotonic() + timeout_s)
    finally:
        for process in processes:
            process.kill()  # what has answered has nothing left to do
        for process in processes:
            process.join()


def _answers(pipes: list[Connection], deadline: float) -> list[Any]:
    found: dict[int, Any] = {}
    while len(found) < len(pipes):
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in found]
        ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RuntimeError(f"no answer in time from ranks {sorted(set(range(len(pipes))) - set(found))}")
        for pipe in ready:
            rank = pipes.index(pipe)  # type: ignore[arg-type]
            try:
                failed, answer = pickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]
            except EOFError:
                raise RuntimeError(f"rank {rank} is gone without an answer") from None
            if failed:
                raise RuntimeError(f"rank {rank}:\n{answer}")
            found[rank] = answer
    return [found[rank] for rank in range(len(pipes))]


def _rank(
    pipe: Connection, environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)  # the server has read OMP_NUM_THREADS before
    try:
        answer = (False, function(*arguments))
    except BaseException:
        answer = (True, traceback.format_exc())
    # Not `pipe.send`: torch would pass tensors on in shared memory, which is gone with this process.
    pipe.send_bytes(pickle.dumps(answer))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads sometimes abort an orderly exit
