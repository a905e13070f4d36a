"""`python -m sft_dist.count RECIPE_JSON`: how many rows each split has, for a plan's exact number of steps.

Reads and cleans the data as training does, without torch models. Prints one line of JSON; with exit code 2, the user's mistakes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe


def main(path: str) -> int:
    os.umask(0o077)  # the cache holds rows
    recipe = Recipe.model_validate_json(Path(path).read_bytes())
    # Imported late: an invalid recipe is refused before data libraries are loaded.
    from sft_dist.data.prepare import prepare
    from sft_dist.data.slices import slice_columns
    from sft_dist.tasks import task_of
    from sft_dist.tasks.models import load_processor

    try:
        task = task_of(recipe)
        packs = recipe.task.packs
        data = prepare(recipe, task, load_processor(recipe, task) if packs else None)
        slice_columns(data, recipe)  # columns that cannot divide the scores are refused before training
        splits = {split: len(rows) for split, rows in (data.examples if packs else data.splits).items()}
    except UserError as error:
        print(json.dumps(error.to_dict(), ensure_ascii=False))
        return 2
    print(json.dumps({"splits": splits, "dropped": data.dropped, "labels": task.labels}, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
