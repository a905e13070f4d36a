"""What each kind of tuning can be combined with: strategies, and forms of export. The table in `docs/strategies.md` is made
of this. Torch-free."""

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

# Strategies a tuning runs with; `auto` becomes one of them when a run is planned.
STRATEGIES = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp2")

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


def refusal(strategy: str, tuning: Tuning) -> str | None:
    """Why a tuning does not work with a strategy; None: it does."""
    if strategy.startswith("zero") and isinstance(tuning, FreezeTuning) and tuning.unfreeze_every is not None:
        return (
            "DeepSpeed updates all trained weights as one flat tensor, so weights that wait would gather optimizer state and "
            "count in the gradient norm"
        )
    if isinstance(tuning, QloraTuning) and strategy in ("zero3", "fsdp2"):
        return "weights in 4 bits cannot be cut into shards that are trained in fp32"
    return None


def strategies_for(tuning: Tuning) -> tuple[str, ...]:
    return tuple(strategy for strategy in STRATEGIES if refusal(strategy, tuning) is None)


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
