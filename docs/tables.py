"""`python docs/tables.py`: writes the tables of these pages that are made from the code. A test holds that they are current."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from sft_dist.recipe.strategies import STRATEGIES, tuning_refusal
from sft_dist.recipe.tunings import KINDS, best_form, has_adapter

PAGE = Path(__file__).with_name("strategies.md")
MARKS = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
# Models of the depth table, in their default sizes.
MODELS = {
    "BERT": ("BertForSequenceClassification", "BertConfig"),
    "Llama": ("LlamaForSequenceClassification", "LlamaConfig"),
    "ViT": ("ViTForImageClassification", "ViTConfig"),
    "T5": ("T5ForConditionalGeneration", "T5Config"),
    "Marian": ("MarianMTModel", "MarianConfig"),
    "BART": ("BartForConditionalGeneration", "BartConfig"),
    "Whisper": ("WhisperForConditionalGeneration", "WhisperConfig"),
    "RT-DETR": ("RTDetrForObjectDetection", "RTDetrConfig"),
    "SegFormer": ("SegformerForSemanticSegmentation", "SegformerConfig"),
}


def tunings() -> str:
    """Kinds of tuning x strategies; refusals are numbered and explained below."""
    notes: list[str] = []
    lines = [f"| tuning | {' | '.join(STRATEGIES)} | export |", f"|---|{'---|' * (len(STRATEGIES) + 1)}"]
    for name, tuning in KINDS.items():
        cells = []
        for strategy in STRATEGIES:
            reason = tuning_refusal(strategy, tuning)
            if reason is not None and reason not in notes:
                notes.append(reason)
            where = " (GPU)" if tuning.method == "qlora" else ""
            cells.append(f"yes{where}" if reason is None else f"no ({notes.index(reason) + 1})")
        forms = (
            "whole" if not has_adapter(tuning) else "merged, adapter" if best_form(tuning) == "merged" else "adapter"
        )
        lines.append(f"| {name} | {' | '.join(cells)} | {forms} |")
    explained = [f"{number}. {reason[0].upper()}{reason[1:]}." for number, reason in enumerate(notes, 1)]
    return "\n".join([*lines, "", *explained, ""])


def depths() -> str:
    """Models x where their weights lie; 0 is the head, the last number the embeddings."""
    import torch  # takes seconds to import, with transformers
    import transformers

    from sft_dist.tuning import layer_depths
    from sft_dist.tuning.layers import num_layers

    lines = ["| model | 0 | layers, from the last | embeddings |", "|---|---|---|---|"]
    for name, (model, config) in MODELS.items():
        with torch.device("meta"):
            module = getattr(transformers, model)(getattr(transformers, config)())
        lines.append(f"| {name} | {' | '.join(_columns(layer_depths(module), num_layers(module) + 1))} |")
    return "\n".join([*lines, ""])


def _columns(by_name: Mapping[str, int], deepest: int) -> list[str]:
    """Returns the cells of a model: its modules by depth."""
    modules: dict[str, int] = {}
    for name, depth in by_name.items():
        modules.setdefault(_module(name, by_name), depth)
    layers: dict[str, list[int]] = {}
    for module, depth in sorted(modules.items(), key=lambda item: item[1]):
        if 0 < depth < deepest:
            layers.setdefault(re.sub(r"\.\d+$", "", module), []).append(depth)
    cells = [f"`{module}` {_range(numbers)}" for module, numbers in layers.items()]
    ends = [", ".join(f"`{m}`" for m, depth in modules.items() if depth == end) or "nothing" for end in (0, deepest)]
    return [ends[0], "; ".join(cells), f"{deepest}: {ends[1]}"]


def _module(name: str, by_name: Mapping[str, int]) -> str:
    """Returns the shortest prefix of a weight's name whose weights are all equally deep."""
    words = name.split(".")
    for end in range(1, len(words)):
        prefix = ".".join(words[:end])
        if len({depth for other, depth in by_name.items() if other.startswith(f"{prefix}.")}) == 1:
            return prefix
    return name


def _range(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


TABLES = {"tunings": tunings, "depths": depths}


def current(page: str) -> str:
    """The page with the tables as they should be."""
    return MARKS.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}{match[3]}", page)


if __name__ == "__main__":
    PAGE.write_text(current(PAGE.read_text()))
