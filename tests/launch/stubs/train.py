"""A trainer in a few lines: counts steps, writes what the real one writes, obeys `stop`, SIGTERM and the lock."""

import fcntl
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

settings = {
    "steps": 20,
    "step_s": 0.1,
    "fail_rank": None,
    "fail_step": 3,
    "fail_user": False,
    "deaf": False,
    "hang_at": None,
}
settings |= json.loads(os.environ["STUB"])
folder = Path(sys.argv[1])
rank = int(os.environ.get("RANK", "0"))
attempt = folder / "attempts" / f"{int(os.environ['SFT_DIST_ATTEMPT']):03d}"
asked: list[str] = []
signal.signal(signal.SIGTERM, lambda *_: asked.append("SIGTERM"))
if settings["deaf"]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def record(kind: str, step: int, **values: object) -> None:
    line = {"kind": kind, "attempt": 1, "step": step, "total_steps": settings["steps"], "time": time.time(), **values}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


if rank == 0:
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (folder / "stop").unlink(missing_ok=True)  # as the real one does, once it is set up
    write(attempt / "start.json", {"total_steps": settings["steps"]})
kept = folder / "step.json"
first = json.loads(kept.read_text()) if kept.exists() else 0
print(f"rank {rank} of {os.environ.get('WORLD_SIZE', '1')} starts after step {first}", flush=True)


def sign() -> None:
    while True:  # as `sft_dist.run.heartbeat` does
        facts = {
            "rank": rank,
            "host": "here",
            "pid": os.getpid(),
            "step": step,
            "phase": "training",
            "time": time.time(),
        }
        aside = attempt / f".rank-{rank}.beat.json"
        write(aside, facts)
        aside.rename(attempt / f"rank-{rank}.beat.json")
        time.sleep(0.1)


step = first
threading.Thread(target=sign, daemon=True).start()
for step in range(first + 1, settings["steps"] + 1):
    time.sleep(settings["step_s"])
    if rank == 0 and step == settings["hang_at"] and attempt.name == "001":
        os.kill(os.getpid(), signal.SIGSTOP)
    if rank == settings["fail_rank"] and step == settings["fail_step"]:
        error = {"rank": rank, "host": "here", "time": time.time(), "step": step, "type": "MemoryError",
                 "message": "no room", "traceback": "", "user_error": settings["fail_user"]}  # fmt: skip
        write(attempt / f"rank-{rank}.error.json", error)
        sys.exit(1)
    if rank == 0:
        record("train", step, loss=1 / step, lr=1e-3, examples_per_s=320.0, eta_s=1.0)
        if step % 5 == 0:
            record("validation", step, loss=0.5, accuracy=0.75)
            record("checkpoint", step, seconds=0.1)
    if not settings["deaf"] and (asked or (folder / "stop").exists()) and step < settings["steps"]:
        if rank == 0:
            kept.write_text(str(step))
            write(attempt / "outcome.json", {"state": "stopped", "last_step": step, "reason": "asked to stop"})
        sys.exit(0)
if rank == 0:
    write(attempt / "outcome.json", {"state": "finished", "last_step": settings["steps"], "reason": "all steps done"})
