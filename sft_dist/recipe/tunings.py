"""The kinds of tuning, and in which form each can be exported. `docs/strategies.md` has a table of them. Torch-free."""

from __future__ import annotations

from sft_dist.recipe.schema import (
    BitfitTuning,
    FreezeTuning,
    FullTuning,
    Ia3Tuning,
    LoraTuning,
    PrefixTuning,
    PromptTuning,
    QloraTuning,
    Recipe,
    Tuning,
)

# The kinds of tuning there are, each with an example. tests/integration/test_strategies.py runs every one of them with every
# strategy that does not refuse it.
KINDS: dict[str, Tuning] = {
    "full": FullTuning(method="full"),
    "freeze": FreezeTuning(method="freeze", train_last_layers=1, train_embeddings=True),
    "freeze, gradually unfrozen": FreezeTuning(method="freeze", train_last_layers=2, unfreeze_every="2 steps"),
    "bitfit": BitfitTuning(method="bitfit"),
    "lora": LoraTuning(method="lora", r=4),
    "lora, rsLoRA": LoraTuning(method="lora", r=4, rslora=True),
    "lora, DoRA": LoraTuning(method="lora", r=4, dora=True),
    "lora, modules_to_save": LoraTuning(method="lora", r=4, modules_to_save=["pooler"]),
    "ia3": Ia3Tuning(method="ia3"),
    "prefix": PrefixTuning(method="prefix", virtual_tokens=4),
    "prompt": PromptTuning(method="prompt", virtual_tokens=4),
    "qlora": QloraTuning(method="qlora", r=4),
}


def has_adapter(tuning: Tuning) -> bool:
    """Whether what is trained lies beside the base's weights."""
    return not isinstance(tuning, (FullTuning, FreezeTuning, BitfitTuning))


def merge_refusal(tuning: Tuning) -> str | None:
    """Why the adapter cannot become part of the base's weights; None: it can."""
    if isinstance(tuning, (PrefixTuning, PromptTuning)):
        return "what it trains is put before the text and has no place in the base's weights"
    if isinstance(tuning, QloraTuning):
        return "the base has 4 bits a weight, and the sum would be rounded to them"
    return None


def best_form(tuning: Tuning) -> str:
    """merged where that is possible, else adapter."""
    return "merged" if merge_refusal(tuning) is None else "adapter"


def export_form(recipe: Recipe) -> str:
    """merged | adapter | none: what the recipe says, or the best form."""
    return recipe.evaluate.export or best_form(recipe.tuning)


def virtual_tokens(tuning: Tuning) -> int:
    """Positions of the model that a text cannot use."""
    return tuning.virtual_tokens if isinstance(tuning, (PrefixTuning, PromptTuning)) else 0
