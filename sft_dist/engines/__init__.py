"""How ranks share the work while a run trains: one class a way, named by the rows of `recipe/strategies.py`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sft_dist.recipe.files import read_json
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.strategies import STRATEGIES, UNPLANNED
from sft_dist.run.folder import RunFolder

if TYPE_CHECKING:
    from sft_dist.engines.base import Engine


def engine_class(strategy: str) -> type[Engine]:
    """Imports the engine that the strategy's row names."""
    module, name = STRATEGIES[strategy].engine.split(":")
    engine: type[Engine] = getattr(import_module(module), name)
    return engine


def start_engine(recipe: Recipe, folder: RunFolder) -> Engine:
    """Starts the engine; the process group is up and checked when this returns. Raises UserError, RuntimeError."""
    # Imported late: the launcher of a resumed run reads the table without torch.
    import torch

    from sft_dist.engines.base import Setup, require_gpu

    # Started by hand, a run takes what there is.
    planned_on_gpu = (read_json(folder.plan_file) or {}).get("device") == "gpu"
    if planned_on_gpu:
        require_gpu(torch.accelerator.is_available())  # before the others wait for this process
    options = strategy_options(recipe, folder)
    setup = Setup(recipe.train.precision, str(folder.path), options)
    engine: Engine = engine_class(options["name"])(setup)
    if planned_on_gpu:
        require_gpu(engine.accelerator.device.type != "cpu")
    return engine


def strategy_options(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Returns the strategy with its options, as it was planned: `auto` chosen, or replaced when the run was resumed. Without a plan
    it is the recipe's, and `auto` the whole model on every rank."""
    planned = (read_json(folder.plan_file) or {}).get("strategy")
    if isinstance(planned, dict) and planned.get("name") in STRATEGIES:
        return dict(planned)
    requested = recipe.train.strategy
    return {"name": UNPLANNED.name} if requested.name == "auto" else requested.model_dump()
