"""What goes into a checkpoint: copied from the training at one moment, written to files at any later one.

In memory there is at most one of these: rank 0 holds the weights once (4 bytes each; only the adapter's where adapters are
trained), every rank its own part of the optimizer's state (with Adam 8 bytes for each trained weight, over all ranks
together). Files are written from those very tensors, without another copy, but for models whose weights transformers
names or shapes differently on disk: they are converted first, so rank 0 holds their weights twice while it writes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sft_dist.checkpoints.optimizer_state import Piece, SavedState, groups_state, load_groups_state, write_pieces
from sft_dist.checkpoints.store import Checkpoint
from sft_dist.recipe.files import write_json
from sft_dist.tuning import save_weights, saved_names
from sft_dist.tuning.optimizers import load_schedule_state, schedule_state

if TYPE_CHECKING:
    from sft_dist.engines.base import Engine
    from sft_dist.training.state import Training


@dataclass(frozen=True)
class Snapshot:
    """One rank's share of a checkpoint, in memory."""

    model: nn.Module  # its structure and config; what its weights are by now does not matter
    processor: Any
    rank: int
    weights: dict[str, Tensor] | None  # on rank 0
    pieces: list[Piece]
    trainer: dict[str, Any]

    @classmethod
    def take(cls, t: Training) -> Snapshot:
        """Copies the state. Every rank must call it, because sharded weights are gathered."""
        weights = t.engine.weights(saved_names(t.engine.raw_model))
        trainer = {
            "progress": vars(t.progress),
            "schedule": schedule_state(t.schedule),
            "groups": groups_state(t.engine.optimizer),
            "labels": t.task.labels,
        }
        pieces = list(t.engine.pieces())
        return cls(
            t.engine.raw_model, t.processor, t.accelerator.process_index, weights, pieces, copy.deepcopy(trainer)
        )

    def write(self, staging_dir: Path) -> list[Path]:
        """Writes the files of this rank."""
        files = [write_pieces(self.pieces, staging_dir / "state", self.rank)]
        if self.weights is not None:
            model = staging_dir / "model"
            save_weights(self.model, self.weights, model)
            self.processor.save_pretrained(model)
            config: Any = self.model.config
            if not (model / "config.json").exists():  # an adapter's folder has none, and class names live there
                config.save_pretrained(model)
            files += sorted(path for path in model.rglob("*") if path.is_file())
            write_json(staging_dir / "trainer.json", self.trainer)
            files.append(staging_dir / "trainer.json")
        return files


def restore(checkpoint: Checkpoint, engine: Engine, schedule: Any) -> None:
    """Restores optimizer and schedule; the weights are already in the model."""
    with SavedState(checkpoint.state) as saved:
        engine.load(saved)
    state = checkpoint.trainer_state()
    load_schedule_state(schedule, state["schedule"])
    load_groups_state(engine.optimizer, state["groups"])
