"""What goes into a checkpoint: copied from the training at one moment, written to files at any later one."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sft_dist.checkpoint import Checkpoint
from sft_dist.optim import groups_state, load_groups_state, load_schedule_state, schedule_state
from sft_dist.recipe.run_folder import write_json
from sft_dist.state import Piece, SavedState, write_pieces
from sft_dist.tuning import saved_names

if TYPE_CHECKING:
    from sft_dist.engines.base import Engine
    from sft_dist.loop import Training


@dataclass(frozen=True)
class Snapshot:
    """One rank's part of a checkpoint, in memory."""

    t: Training
    weights: dict[str, Tensor] | None  # on rank 0
    pieces: list[Piece]
    trainer: dict[str, Any]

    @classmethod
    def take(cls, t: Training) -> Snapshot:
        """Every rank must call it: sharded weights are gathered."""
        weights = t.engine.weights(saved_names(t.engine.raw_model))
        trainer = {
            "progress": vars(t.progress),
            "schedule": schedule_state(t.schedule),
            "groups": groups_state(t.engine.optimizer),
            "labels": t.task.labels,
        }
        return cls(t, weights, list(t.engine.pieces()), copy.deepcopy(trainer))

    def write(self, aside: Path) -> list[Path]:
        """The files of this rank."""
        rank = self.t.accelerator.process_index
        files = [write_pieces(self.pieces, aside / "state", rank)]
        if self.weights is not None:
            model = aside / "model"
            self._write_model(model)
            files += sorted(path for path in model.rglob("*") if path.is_file())
            write_json(aside / "trainer.json", self.trainer)
            files.append(aside / "trainer.json")
        return files

    def _write_model(self, folder: Path) -> None:
        raw: Any = self.t.engine.raw_model
        raw.save_pretrained(folder, state_dict=self.weights)
        self.t.tokenizer.save_pretrained(folder)
        raw.config.save_pretrained(folder)  # an adapter's folder has no config, and class names live there


def restore(checkpoint: Checkpoint, engine: Engine, schedule: Any) -> dict[str, Any]:
    """Optimizer and schedule as they were; the weights are in the model already. Returns the saved progress."""
    with SavedState(checkpoint.state) as saved:
        engine.load(saved)
    state = checkpoint.trainer_state()
    load_schedule_state(schedule, state["schedule"])
    load_groups_state(engine.optimizer, state["groups"])
    progress: dict[str, Any] = state["progress"]
    return progress
