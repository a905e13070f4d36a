"""What is known about a run, read from the files of its folder: everything that the rules of a diagnosis see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launch.check import cached_report
from launch.report.curves import Line, curves_of, read_metrics
from launch.report.values import is_number, list_in, mapping_in, number_in
from launch.run_state import RunState
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import read_object
from sft_dist.recipe.metrics import selection_metric
from sft_dist.recipe.schema import Recipe
from sft_dist.run.folder import RunFolder
from sft_dist.run.varying import settings_in

Series = tuple[tuple[int, float], ...]  # (step, value), by step

TRAIN_CURVES = ("loss", "lr", "grad_norm", "loading_share")


@dataclass(frozen=True)
class CheckFinding:
    """A finding of the data check."""

    kind: str
    message: str
    count: int = 0
    share: float | None = None  # of the rows of a split


@dataclass(frozen=True)
class DataCheck:
    """What the data check reported."""

    findings: tuple[CheckFinding, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)
    longest: Mapping[str, float] = field(default_factory=dict)  # split -> length of its longest example


@dataclass(frozen=True)
class Evaluation:
    """Scores of the best checkpoint and of the model before training."""

    validation: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    untrained: Mapping[str, float] = field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] = ()  # validation: rows are the true classes, columns the predicted ones
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """All that is known about one run. `train` and `validation` hold curves by name, without what a restart repeated."""

    run: str  # name/id
    folder: str
    state: str
    cause: str  # of its end
    settings: Mapping[str, Any]  # of the resolved recipe, by key path
    step: int
    total_steps: int | None
    epochs: float | None  # trained
    train: Mapping[str, Series] = field(default_factory=dict)
    validation: Mapping[str, Series] = field(default_factory=dict)
    num_bad_losses: int = 0  # logged losses that were NaN or infinite
    metric: str = ""  # that selects checkpoints
    direction: str = "max"
    evaluation: Evaluation | None = None
    data_check: DataCheck | None = None

    @property
    def is_complete(self) -> bool:
        """Whether training did all of its steps."""
        return self.total_steps is not None and self.step >= self.total_steps

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Evidence:
        """Returns what `to_json` described."""
        curves = {
            kind: {name: _series(points) for name, points in value[kind].items()} for kind in ("train", "validation")
        }
        evaluation, check = value["evaluation"], value["data_check"]
        return Evidence(**{
            **value,
            **curves,
            "evaluation": evaluation and Evaluation(**{
                **evaluation, "confusion": tuple(map(tuple, evaluation["confusion"])), "labels": tuple(evaluation["labels"]),
            }),
            "data_check": check and DataCheck(**{
                **check, "findings": tuple(CheckFinding(**finding) for finding in check["findings"]),
            }),
        })  # fmt: skip


def _series(points: Any) -> Series:
    return tuple((step, value) for step, value in points)


def read_evidence(state: RunState) -> Evidence:
    """Reads a run's files. A file that is missing or damaged leaves its field empty."""
    folder = RunFolder(Path(state.folder))
    lines = read_metrics(folder.metrics_file)
    curves = curves_of(lines)
    recipe = _recipe(folder)
    metric, direction = selection_metric(recipe) if recipe else ("", "max")
    return Evidence(
        run=f"{state.name}/{state.id}",
        folder=state.folder,
        state=state.state,
        cause=state.cause,
        settings=settings_in(recipe.model_dump(mode="json")) if recipe else {},
        step=state.step,
        total_steps=state.total_steps,
        epochs=_epochs(lines),
        train={name: _finite(curves.get(("train", name), {})) for name in TRAIN_CURVES},
        validation={name: _finite(curve) for (kind, name), curve in curves.items() if kind == "validation"},
        num_bad_losses=sum(value is None for value in curves.get(("train", "loss"), {}).values()),
        metric=metric,
        direction=direction,
        evaluation=read_evaluation(folder),
        data_check=read_data_check(recipe) if recipe else None,
    )


def _recipe(folder: RunFolder) -> Recipe | None:
    try:
        return folder.recipe()
    except UserError:
        return None


def _finite(curve: Mapping[int, float | None]) -> Series:
    return tuple((step, float(value)) for step, value in sorted(curve.items()) if value is not None)


def _epochs(lines: list[Line]) -> float | None:
    epochs = [line["epoch"] for line in lines if line["kind"] == "train" and is_number(line.get("epoch"))]
    return float(epochs[-1]) if epochs else None


def read_evaluation(folder: RunFolder) -> Evaluation | None:
    """Returns the scores of the run's own leaderboard, else of its recipe's where this run won there."""
    for owner in (folder.path, folder.path.parent):
        board = read_object(owner / "leaderboard.json")
        winner = mapping_in(board.get("winner"))
        if winner.get("run") == folder.id:
            return Evaluation(
                validation=_scores(winner.get("validation")),
                test=_scores(winner.get("test")),
                untrained=_scores(board.get("untrained")),
                confusion=_matrix(mapping_in(winner.get("validation")).get("confusion_matrix")),
                labels=tuple(str(label) for label in list_in(board.get("labels"))),
            )
    return None


def _scores(value: Any) -> dict[str, float]:
    return {name: score for name, score in mapping_in(value).items() if is_number(score)}


def _matrix(value: Any) -> tuple[tuple[int, ...], ...]:
    """Returns counts of one matrix; empty for several of them, as multi-label scores have."""
    rows = [list_in(row) for row in list_in(value)]
    is_square = all(len(row) == len(rows) and all(is_number(cell) for cell in row) for row in rows)
    return tuple(tuple(int(cell) for cell in row) for row in rows) if is_square else ()


def read_data_check(recipe: Recipe) -> DataCheck | None:
    """Returns what `sft-dist check` kept about this data; None where it was not checked since it changed."""
    report = cached_report(recipe)
    if report is None:
        return None
    findings = [mapping_in(finding) for finding in list_in(report.get("findings"))]
    return DataCheck(
        findings=tuple(_check_finding(finding) for finding in findings),
        rows={split: count for split, count in mapping_in(report.get("rows")).items() if is_number(count)},
        longest={
            split: float(of_split["max"])
            for split, of_split in mapping_in(report.get("lengths")).items()
            if is_number(mapping_in(of_split).get("max"))
        },
    )


def _check_finding(finding: Mapping[str, Any]) -> CheckFinding:
    return CheckFinding(
        kind=str(finding.get("kind")),
        message=str(finding.get("message")),
        count=int(number_in(finding.get("count")) or 0),
        share=number_in(mapping_in(finding.get("details")).get("share")),
    )
