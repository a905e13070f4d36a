"""Starts ranks as `accelerate launch` does: one process simply, several each in its own session; ends all when one fails."""

import os
import signal
import subprocess
import sys
import time

count = int(sys.argv[sys.argv.index("--num_processes") + 1])
module = sys.argv[sys.argv.index("-m") + 1 :]
if count == 1:
    sys.exit(subprocess.Popen([sys.executable, "-m", *module]).wait() != 0)


def leave(*_: object) -> None:
    for rank in ranks:
        rank.terminate()
    for rank in ranks:
        try:
            rank.wait(timeout=3)
        except subprocess.TimeoutExpired:
            rank.kill()
    sys.exit(1)


ranks = [
    subprocess.Popen(
        [sys.executable, "-m", *module],
        env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(count)},
        start_new_session=True,
    )
    for rank in range(count)
]
signal.signal(signal.SIGTERM, leave)
while any(rank.poll() is None for rank in ranks):
    if any(rank.poll() for rank in ranks):
        leave()
    time.sleep(0.05)
sys.exit(any(rank.returncode for rank in ranks))
