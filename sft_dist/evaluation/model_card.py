"""The model card: README.md of an exported folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft_dist import __version__
from sft_dist.recipe.files import read_json
from sft_dist.recipe.references import classify
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.tunings import has_adapter
from sft_dist.run.candidates import candidate_name
from sft_dist.run.folder import RunFolder
from sft_dist.tasks.base import Task


def _scheme_line(scores: dict[str, Any]) -> str:
    """Says by which tag scheme entities were counted, where tags were scored."""
    scheme = scores.get("tag_scheme")
    return f"\nEntities are counted by the tag scheme: {scheme['name']}.\n" if scheme else ""


def _prefix_line(recipe: Recipe) -> str:
    """Says what stands before every text, which transformers does not add."""
    prefix = getattr(recipe.task, "prefix", "")
    return f"\nOutside of sft-dist, write `{prefix}` before every text.\n" if prefix else ""


def _temperature_line(temperature: float | None) -> str:
    """Says by what probabilities are calibrated, which the weights and transformers know nothing of."""
    if temperature is None:
        return ""
    divisor = f"{temperature:.4g}"
    return (
        f"\n`sft-dist predict` divides the logits by the temperature {divisor}, which was fitted on validation, before it computes "
        f"probabilities. The model's own logits are as trained: elsewhere, compute `softmax(logits / {divisor})`.\n"
    )


def _hub_line(base: str) -> str:
    """Names the base model where the hub looks for it, if it is one of the hub's."""
    return f"base_model: {base}\n" if classify(base, Path()).kind == "hub" else ""


def model_card(
    recipe: Recipe,
    folder: RunFolder,
    step: int,
    form: str,
    task: Task,
    validation: dict[str, Any],
    final: dict[str, dict[str, Any]],
    temperature: float | None = None,
    members: Sequence[int] = (),  # steps, where it is the mean of several checkpoints
) -> str:
    """README.md of the exported folder: what it is, data, scores, recipe, how to use it."""
    base = recipe.model.path
    outcome = read_json(folder.path / "plan.json") or {}
    columns = {"validation": validation, **final}
    names = sorted(
        {name for scores in columns.values() for name, value in scores.items() if not isinstance(value, (list, dict))}
    )
    table = [f"| score | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name in names:
        cells = [columns[split].get(name) for split in columns]
        table.append(f"| {name} | {' | '.join(_cell(value) for value in cells)} |")
    source = (
        recipe.data.source if isinstance(recipe.data.source, str) else recipe.model_dump(mode="json")["data"]["source"]
    )
    return f"""---
library_name: {"peft" if form == "adapter" else "transformers"}
pipeline_tag: {task.pipeline_tag}
{_hub_line(base)}tags: [sft-dist, {recipe.tuning.method}]
---

# {recipe.name}

{recipe.description or f"A model for {recipe.task.type}, fine-tuned from `{base}`."}

- **Base model**: `{base}`
- **Tuning**: {recipe.tuning.method}{", merged into the base" if has_adapter(recipe.tuning) and form == "merged" else ""}
- **Labels**: {", ".join(task.labels) or "none"}
- **Checkpoint**: {candidate_name(step, members)} of run `{folder.id}`, chosen on validation{f" (plan: {outcome['steps']['total']} steps)" if outcome.get("steps") else ""}

## Data

`{source}`{f", rows where {recipe.data.where}" if recipe.data.where else ""}{f", {recipe.data.limit} rows drawn" if recipe.data.limit else ""}.
{f"Texts longer than {recipe.data.max_length} tokens were cut." if task.counts_tokens else ""}

## Scores

{chr(10).join(table)}
{_scheme_line(validation)}
The checkpoint was chosen by its validation score; test was scored once, for this checkpoint alone.

## Use

```
sft-dist predict {folder.export.name} texts.txt
```
{_prefix_line(recipe)}{_temperature_line(temperature)}
Names of classes, thresholds, and what ends an answer are in the folder, where plain transformers reads them.

## Recipe

```json
{recipe.model_dump_json(indent=2, exclude_none=True)}
```

Made with sft-dist {__version__}.
"""


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
