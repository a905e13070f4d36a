"""Times the submission of a sweep of a thousand runs, from the command line to the job's id, with its run folders.

    python benchmarks/submit.py [RUNS]

sbatch and squeue are stand-ins that answer at once, so this is the launcher's own time; exit code 1 when the median of three
misses the goal (3 s for 1,000 runs, in at most two calls of sbatch). The processor time is printed beside it, because a machine
that others use makes the first longer and not the second. Where the time goes: docs/decisions/0008-a-thousand-runs.md.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
STUBS = ROOT / "tests/launch/stubs/slurm"
GOAL_S, MAX_CALLS = 3.0, 2


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as folder:
        workplace = Path(folder)
        (workplace / "model").mkdir()
        (workplace / "model/config.json").write_text("{}")
        (workplace / "rows.csv").write_text("text,label\n" + "".join(f"text {n},{n % 2}\n" for n in range(100)))
        (workplace / "here.yaml").write_text("cpus_per_node: 2\nmax_time: 1h\n")
        (workplace / "sweep.yaml").write_text(
            "task: text-classification\nmodel: {path: ./model}\ndata: {source: ./rows.csv}\ntuning: full\n"
            f"train: {{lr: 1.0e-3}}\nmatrix: {{train.seed: {list(range(count))}}}\n"
        )
        env = {**os.environ, "PATH": f"{STUBS}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "STUB_QUEUE": "none"}
        argv = [
            sys.executable,
            "-m",
            "launch",
            "submit",
            "sweep.yaml",
            "--cluster",
            "./here.yaml",
            "--no-eval",
            "--no-check",
        ]
        # Rows are counted once for each data set, by a child process that takes its time.
        subprocess.run(
            [*argv, "--dry-run"], cwd=workplace, env={**env, "STUB_LOG": str(workplace / "log-0")}, check=True
        )
        times, calls = [], 0
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        for attempt in range(3):
            log = workplace / f"log-{attempt + 1}"
            started = time.perf_counter()
            subprocess.run(
                [*argv, "--runs", f"runs-{attempt}"], cwd=workplace, env={**env, "STUB_LOG": str(log)}, check=True,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            times.append(time.perf_counter() - started)
            calls = sum(line.startswith("sbatch") for line in log.read_text().splitlines())
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    median = statistics.median(times)
    busy = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / len(times)
    print(f"{count:,} runs: {median:.2f} s (of {', '.join(f'{time_s:.2f}' for time_s in times)}), {calls} sbatch calls")
    print(f"processor time {busy:.2f} s each; load of this machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return int(median > GOAL_S * count / 1000 or calls > MAX_CALLS)


if __name__ == "__main__":
    sys.exit(main())
