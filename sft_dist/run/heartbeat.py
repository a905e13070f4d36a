"""Heartbeats, one file per rank: they tell a run that hangs from one that is slow, and name the rank that hangs.

The training loop records how far it has come; a thread writes that down, also while the rank waits for others. So a stopped
process, or one whose machine is gone, has no heartbeat at all; one that waits or loops forever has one without progress.

A rank without progress dumps its own stacks. No signal is involved (NCCL and torchrun use SIGUSR1 themselves), so this works on
every host, and while something holds the interpreter's lock.
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

SLOWEST_S = 10.0  # between heartbeats: a file system with a thousand ranks on it should not mind
FASTEST_S = 0.2


def interval_of(timeout_s: float) -> float:
    """Returns the seconds between two heartbeats of a rank."""
    return min(SLOWEST_S, max(FASTEST_S, timeout_s / 20))


class Heartbeat:
    """Writes one rank's heartbeat until `stop`."""

    def __init__(self, attempt: AttemptFolder, rank: int, timeout_s: float) -> None:
        self._file = attempt.heartbeat_file(rank)
        self._stack = attempt.stack_file(rank).open("a")
        self._timeout_s = timeout_s
        self._identity = {"rank": rank, "host": socket.gethostname(), "pid": os.getpid()}
        self.reached = (0, "starting")  # step and phase
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._write_until_stopped, name="heartbeat", daemon=True)
        self._thread.start()

    def tick(self, step: int, phase: str) -> None:
        """Records that this rank is at `step`; costs nothing. Phases: starting, training, validating, saving."""
        self.reached = (step, phase)

    def stop(self) -> None:
        """Writes that the rank has ended, well or not."""
        self._stopped.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._stack.close()
        self._write("ended")

    def _write_until_stopped(self) -> None:
        written = (0, "starting")
        while not self._stopped.wait(interval_of(self._timeout_s)):
            if self.reached != written:
                written = self.reached
                if written[1] == "training":
                    faulthandler.dump_traceback_later(self._timeout_s, file=self._stack)
                else:  # may take long without anything being wrong
                    faulthandler.cancel_dump_traceback_later()
            self._write(written[1])

    def _write(self, phase: str) -> None:
        """Replaces the file at once, without forcing it to disk. A full disk is ignored: training itself reports it."""
        content = {**self._identity, "step": self.reached[0], "phase": phase, "time": round(time.time(), 3)}
        staging = self._file.with_name(f".{self._file.name}")
        with contextlib.suppress(OSError):
            staging.write_text(json.dumps(content))
            os.replace(staging, self._file)
