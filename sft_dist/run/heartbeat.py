"""Signs of life, one file a rank, so that a run that hangs can be told from one that is slow, and the rank be named.

The loop says how far it has come; a thread writes it down, also while the rank waits for others. So a process that
stands still, or whose machine is gone, gives no sign at all; one that waits or loops for ever does, without progress.

A rank without progress dumps its own stacks: no signal is involved (NCCL and torchrun have their own ideas about
SIGUSR1), and it works on every host, and while something holds the interpreter's lock.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import threading
import time

from sft_dist.run.folder import AttemptFolder

SLOWEST_S = 10.0  # between signs of life: a file system with a thousand ranks on it should not mind
FASTEST_S = 0.2


def interval_of(timeout_s: float) -> float:
    """How often a rank gives a sign of life."""
    return min(SLOWEST_S, max(FASTEST_S, timeout_s / 20))


class Heartbeat:
    """One rank's signs of life, until `stop`."""

    def __init__(self, attempt: AttemptFolder, rank: int, timeout_s: float) -> None:
        self._file = attempt.heartbeat_file(rank)
        self._stack = attempt.stack_file(rank).open("a")
        self._timeout_s = timeout_s
        self._who = {"rank": rank, "host": socket.gethostname(), "pid": os.getpid()}
        self.reached = (0, "starting")  # step and phase
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="heart", daemon=True)
        self._thread.start()

    def tick(self, step: int, phase: str) -> None:
        """This rank is at `step`. Phases: starting, training, validating, saving. Costs nothing."""
        self.reached = (step, phase)

    def stop(self) -> None:
        """The rank is done, well or not, and owes no more signs of life."""
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._stack.close()
        self._write("ended")

    def _live(self) -> None:
        seen = (0, "starting")
        while not self._over.wait(interval_of(self._timeout_s)):
            if self.reached != seen:
                seen = self.reached
                if seen[1] == "training":
                    faulthandler.dump_traceback_later(self._timeout_s, file=self._stack)
                else:  # may take long without anything being wrong
                    faulthandler.cancel_dump_traceback_later()
            self._write(seen[1])

    def _write(self, phase: str) -> None:
        """Whole or not at all, but not forced to disk; a full disk is the training's own business."""
        sign = {**self._who, "step": self.reached[0], "phase": phase, "time": round(time.time(), 3)}
        aside = self._file.with_name(f".{self._file.name}")
        with contextlib.suppress(OSError):
            aside.write_text(json.dumps(sign))
            os.replace(aside, self._file)
