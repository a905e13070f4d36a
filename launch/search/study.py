"""The journal of a search: the only module that opens it, and only for the process that holds the lease (or to read).

Optuna's own file lock is not used: a process that stands still for 30 s loses it, and then two processes write. A line that was
torn by a kill would poison the study at the next append, so it is cut off first, and kept beside the journal.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from launch.search.sampler import direction_of, frozen, next_point, point_of
from launch.search.space import Point, Space
from launch.search.trial import Trial
from sft_dist.recipe.files import write_bytes
from sft_dist.recipe.schema import Search

JOURNAL = "journal.jsonl"
NAME = "search"
REFUSED = "refused by the planner"  # name of the constraint
_STATES = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "repeated"}


class _Leased(JournalFileOpenLock):
    """Locks nothing: the lease excludes other writers."""

    def __init__(self) -> None:
        pass

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


class Study:
    """The trials of a search. Each method that changes them appends one line, or two of which the first changes nothing."""

    def __init__(self, study: optuna.Study, space: Space) -> None:
        self._study, self._space = study, space

    @classmethod
    def open(cls, folder: Path, space: Space, maximize: bool) -> Study:
        """Opens the journal to write, or begins it. Needs the lease."""
        file = folder / JOURNAL
        cut_torn_line(file)
        study = optuna.create_study(
            storage=_storage(file), study_name=NAME, direction=direction_of(maximize), load_if_exists=True
        )
        return cls(study, space)

    @classmethod
    def read(cls, folder: Path, space: Space) -> Study | None:
        """Opens the journal to read; None when there is none."""
        file = folder / JOURNAL
        if not file.exists() or not file.stat().st_size:
            return None
        try:
            return cls(optuna.load_study(storage=_storage(file), study_name=NAME), space)
        except KeyError:  # its first line is incomplete
            return None

    def trials(self) -> list[Trial]:
        return [self._trial(trial) for trial in self._study.get_trials(deepcopy=False)]

    def next_point(self, search: Search, maximize: bool) -> Point | None:
        """Returns the next point to try, from all trials so far; None when a grid has no more."""
        return next_point(self._space, [self._as_sampler_sees(trial) for trial in self._frozen()], search, maximize)

    def importance(self) -> dict[str, float]:
        """Returns the share of each dimension in the variance of finished trials (PED-ANOVA, arXiv 2304.10255)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dict(optuna.importance.get_param_importances(self._study))

    # ── one line each ───────────────────────────────────────────────────────────────────────────────────────────────
    def reserve(self, point: Point, run: str, rungs: tuple[int, ...]) -> None:
        """Adds a trial together with its run's id, before anything of the run exists."""
        self._add(point, TrialState.RUNNING, {"run": run, "rungs": list(rungs)})

    def refuse(self, point: Point, reason: str) -> None:
        """Adds a point that cannot be trained: pruned, so that samplers avoid its neighbourhood."""
        self._add(point, TrialState.PRUNED, {"reason": reason}, constraints={REFUSED: 1.0})

    def repeat(self, point: Point, earlier: Trial) -> None:
        """Adds a point whose run an earlier trial has: failed, which samplers ignore, since the earlier one counts."""
        self._add(point, TrialState.FAIL, {"reason": f"the same run as trial {earlier.number}"})

    def report(self, trial: Trial, step: int, score: float) -> None:
        self._study._storage.set_trial_intermediate_value(self._id(trial), step, score)

    def promote(self, trial: Trial, rung: int) -> None:
        self._set(trial, "rung", rung)

    def condemn(self, trial: Trial, reason: str) -> None:
        """Records why a trial will be pruned, before it is stopped."""
        self._set(trial, "reason", reason)

    def finish(self, trial: Trial, value: float) -> None:
        self._study.tell(trial.number, value, skip_if_finished=True)

    def prune(self, trial: Trial, reason: str) -> None:
        if trial.reason != reason:
            self.condemn(trial, reason)
        self._study.tell(trial.number, state=TrialState.PRUNED, skip_if_finished=True)

    def _add(self, point: Point, state: TrialState, attributes: dict[str, Any], **facts: Any) -> None:
        self._study.add_trial(frozen(self._space, point, state, user_attrs=attributes, **facts))

    def _set(self, trial: Trial, key: str, value: Any) -> None:
        self._study._storage.set_trial_user_attr(self._id(trial), key, value)

    def _id(self, trial: Trial) -> int:
        return self._frozen()[trial.number]._trial_id

    def _frozen(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _trial(self, trial: FrozenTrial) -> Trial:
        attributes = trial.user_attrs
        return Trial(
            number=trial.number,
            state=_STATES.get(trial.state, "running"),
            point=point_of(self._space, trial),
            run=attributes.get("run", ""),
            value=trial.value if trial.state == TrialState.COMPLETE else None,
            rungs=tuple(attributes.get("rungs", ())),
            rung=attributes.get("rung", 0),
            scores=dict(trial.intermediate_values),
            reason=attributes.get("reason", ""),
        )

    def _as_sampler_sees(self, trial: FrozenTrial) -> FrozenTrial:
        """A paused trial counts as pruned, so that its score teaches the sampler; a running one has no score yet."""
        if not self._trial(trial).is_paused:
            return trial
        point = point_of(self._space, trial)
        return frozen(self._space, point, TrialState.PRUNED, intermediate_values=trial.intermediate_values)


def cut_torn_line(file: Path) -> Path | None:
    """Cuts off what follows the last complete line, and returns the file that keeps it; None when there is nothing."""
    content = file.read_bytes() if file.exists() else b""
    size = content.rfind(b"\n") + 1
    if size == len(content):
        return None
    copies = len(list(file.parent.glob(f"{file.name}.torn-*")))
    copy = file.with_name(f"{file.name}.torn-{copies + 1}")
    write_bytes(copy, content[size:])
    with file.open("rb+") as stream:
        stream.truncate(size)
        os.fsync(stream.fileno())
    return copy


def _storage(file: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(file), lock_obj=_Leased()))
