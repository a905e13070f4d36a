"""Ports for the processes of one training to meet at."""

from __future__ import annotations

import itertools
import os
import socket

# Below what the kernel gives away by itself (32768 and up): there another process could take it between look and use.
FIRST, EACH = 26_000, 3_000  # two workers of pytest-xdist
_numbers = itertools.count(os.getpid() % EACH)


def free_port() -> int:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 2
    while True:
        port = FIRST + worker * EACH + next(_numbers) % EACH
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
