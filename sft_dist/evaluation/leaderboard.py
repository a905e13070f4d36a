"""The leaderboard: which score chooses, the order of checkpoints, and the table as data and as Markdown. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.metrics import directions, selection_metric
from sft_dist.recipe.schema import Recipe
from sft_dist.run.candidates import candidate_name, members_in
from sft_dist.run.folder import RunFolder
from sft_dist.run.varying import describe_settings, format_setting, naming_settings, settings_in, varying_settings

_NAMED_ROWS = 10
_NAMED_SLICES = 3


@dataclass(frozen=True)
class Scored:
    """A checkpoint, or the mean of several, and its validation scores."""

    folder: RunFolder
    step: int  # of a mean, its newest
    fingerprint: str
    scores: dict[str, Any]
    members: tuple[int, ...] = ()  # steps of a mean

    @property
    def path(self) -> Path:
        return self.folder.candidate(self.step, self.members)

    @property
    def name(self) -> str:
        return candidate_name(self.step, self.members)

    def to_json(self) -> dict[str, Any]:
        """Returns what names it in leaderboard.json."""
        members = {"members": [*self.members]} if self.members else {}
        return {"run": self.folder.id, "folder": str(self.folder.path), "step": self.step, **members}


def common_metric(recipes: list[Recipe]) -> tuple[str, str]:
    choices = {selection_metric(recipe) for recipe in recipes}
    if len(choices) > 1:
        raise UserError(f"the runs choose by different scores ({sorted(choices)}), so they have no common winner")
    return choices.pop()


def rank_key(candidate: Scored, metric: str, direction: str) -> tuple[float, float, int, int]:
    """The order of checkpoints, as while training: `rank_scores`, then the earlier step. Means of it come after a checkpoint."""
    return (*rank_scores(candidate.scores, metric, direction), candidate.step, len(candidate.members))


def rank_scores(scores: Mapping[str, Any], metric: str, direction: str) -> tuple[float, float]:
    """Sorts the better score first, then the lower loss; NaN and undefined scores come last."""
    sign = -1.0 if direction == "max" else 1.0
    return _sort_value(scores.get(metric), sign), _sort_value(scores.get("loss"))


def _sort_value(score: float | None, sign: float = 1.0) -> float:
    return sign * score if score is not None and math.isfinite(score) else math.inf


def undefined_everywhere(winner: dict[str, Any], metric: str) -> str:
    """Returns what to say when no checkpoint has the metric, else ""; `winner`: the scores of the first of a ranking."""
    if winner.get(metric) is not None and math.isfinite(winner[metric]):
        return ""
    return f"{metric} is undefined for every checkpoint, so the lower loss decides; choose another evaluate.metric"


def compose(
    ranking: list[Scored],  # the winner first
    recipes: dict[RunFolder, Recipe],
    labels: list[str],  # of the winner
    untrained: dict[str, Any],  # validation scores of the model that the winner began as
    final: dict[str, dict[str, Any]],  # split -> the winner's scores
    damaged: list[str],
) -> dict[str, Any]:
    """Returns what leaderboard.json holds."""
    winner = ranking[0]
    metric, direction = selection_metric(recipes[winner.folder])
    return {
        "metric": metric,
        "direction": direction,
        "directions": directions(recipes[winner.folder]),
        "chosen_on": "validation",
        "labels": labels,
        "winner": {
            **winner.to_json(),
            "checkpoint": str(winner.path),
            "validation": winner.scores,
            **final,
        },
        "rows": [{**entry.to_json(), "validation": entry.scores} for entry in ranking],
        "differences": varying_settings(
            {folder.id: settings_in(recipe.model_dump()) for folder, recipe in recipes.items()}
        ),
        "untrained": untrained,
        "no_better_than_untrained": no_better_than_untrained(winner.scores, untrained, metric, direction),
        "no_better_than_guessing": no_better_than_guessing(winner.scores, labels),
        "damaged": damaged,
        "export": None,  # the folder, once the winner is exported
    }


def no_better_than_untrained(scores: dict[str, Any], untrained: dict[str, Any], metric: str, direction: str) -> str:
    """Returns what to say when the validation scores are not above those of the model before training, else ""."""
    score, start = scores.get(metric), untrained.get(metric)
    if start is None or score is None or (score > start if direction == "max" else score < start):
        return ""
    return f"{metric} is {score:.4f}: before training it is {start:.4f}"


def no_better_than_guessing(scores: dict[str, Any], labels: list[str]) -> str:
    """Returns what to say when the validation scores are not above those of a constant answer, else ""."""
    if (r2 := scores.get("r2")) is not None and r2 <= 0:
        return f"r2 is {r2:.4f}: always answering the mean is as good"
    matrix = scores.get("confusion_matrix")
    accuracy = scores.get("accuracy")
    if not matrix or accuracy is None or isinstance(matrix[0][0], list):
        return ""
    rows = [sum(row) for row in matrix]
    share = max(rows) / max(sum(rows), 1)
    if accuracy > share:
        return ""
    number = rows.index(max(rows))
    name = labels[number] if number < len(labels) else str(number)
    return f"accuracy is {accuracy:.4f}: always answering `{name}` scores {share:.4f}"


def render(board: dict[str, Any]) -> str:
    """The leaderboard as Markdown, aligned so that it reads well in a terminal too."""
    winner, metric = board["winner"], board["metric"]
    names = [
        name
        for name, value in winner["validation"].items()
        if not isinstance(value, (list, dict)) and name != "examples"
    ]
    names.sort(key=lambda name: name != metric)
    varied = sorted({key for settings in board["differences"].values() for key in settings})
    rows = [["", "run", "step", *varied, *names]]
    for position, row in enumerate(board["rows"], 1):
        settings = board["differences"].get(row["run"], {})
        cells = [format_setting(settings.get(key)) for key in varied] + [
            format_interval(row["validation"].get(name), row.get("intervals", {}).get(name)) for name in names
        ]
        rows.append([str(position), row["run"], _name(row).removeprefix("step "), *cells])
    if untrained := board.get("untrained"):
        cells = [*("" for _ in varied), *(format_score(untrained.get(name)) for name in names)]
        rows.append(["", "untrained", "0", *cells])
    notes = (
        undefined_everywhere(winner["validation"], metric),
        board.get("no_better_than_guessing"),
        board.get("no_better_than_untrained"),
        board.get("selection_note"),
        not_distinguishable(board),
        *map(_seed_note, board.get("seeds", [])),
        board.get("test_note"),
    )
    point = describe_settings(naming_settings(board["differences"]).get(winner["run"], {}))
    better = "higher" if board["direction"] == "max" else "lower"
    lines = [
        "# Leaderboard",
        "",
        f"Chosen on validation ({winner['validation']['examples']} examples) by {metric}; {better} is better.",
        "",
        *markdown_table(rows),
        "",
        *(line for note in notes if note for line in (f"Note: {note}.", "")),
        f"Winner: run {winner['run']}{f' ({point})' if point else ''}, {_name(winner)} (`{winner['checkpoint']}`).",
    ]
    if not {"train", "test"} & winner.keys():
        lines += _slices(winner, "validation")
    for split in ("train", "test"):
        if split in winner:
            scores = {name: value for name, value in winner[split].items() if not isinstance(value, (list, dict))}
            lines += ["", f"## The winner on {split}, scored once", ""]
            intervals = winner.get("intervals", {}).get(split, {})
            values = [[name, format_interval(value, intervals.get(name))] for name, value in scores.items()]
            lines += markdown_table([["score", "value"], *values])
            lines += _slices(winner, split)
            lines += _calibration(winner.get("calibration", {}), split)
            lines += _confusion(winner[split].get("confusion_matrix"), board["labels"])
    lines += _against_base(board.get("against_base"))
    if undefined := [row for row in board["rows"] if "undefined" in row["validation"]]:
        lines += ["", "## Without scores, ranked last", ""]
        lines += [f"- {row['run']} {_name(row)}: {row['validation']['undefined']['why']}" for row in undefined]
    if board["damaged"]:
        lines += ["", "## Damaged checkpoints, excluded", "", *(f"- {line}" for line in board["damaged"])]
    if board["export"]:
        lines += ["", f"The winner as a Hugging Face folder: `{board['export']}`"]
    return "\n".join(lines) + "\n"


def _against_base(comparison: Mapping[str, Any] | None) -> list[str]:
    """What the winner gained and lost against the model it began as."""
    if not comparison:
        return []
    rows = [["score", "winner", "base", "winner against base", "smallest difference"]]
    for row in comparison["rows"]:
        p = {"worse": row["p_worse"], "better": row["p_better"]}.get(row["result"])
        result = f"{row['result']} (p = {p:.4f})" if p is not None else row["result"]
        size = row["smallest_difference"]
        winner = format_interval(row["winner"], row["interval"])
        rows.append([row["score"], winner, format_score(row["base"]), result, f"{size:.3g}" if size else ""])
    note = [f"Note: {comparison['note']}.", ""] if comparison["note"] else []
    return [
        "",
        f"## The winner and its base, `{comparison['base']}`",
        "",
        *note,
        *(markdown_table(rows) if len(rows) > 1 else []),
    ]


def _slices(winner: Mapping[str, Any], split: str) -> list[str]:
    """Those that are worse than the rest, the surest first; where there is none, the lowest that is large enough for a claim."""
    slices = winner.get("slices", {}).get(split, [])
    tested = sorted((entry for entry in slices if entry["p_value"] is not None), key=lambda entry: entry["p_value"])
    worse = [entry for entry in tested if entry["worse"]]
    if not tested:
        return []
    named = [
        f"{entry['by']} {entry['slice']}: {format_interval(entry['score'], entry['interval'])}"
        f" (n = {entry['examples']:,}, p = {entry['p_value']:.2g})"
        for entry in (worse or tested)[: _NAMED_SLICES if worse else 1]
    ]
    count = f"{len(worse) or 'None'} of {len(slices)} slices of {split} {'is' if len(worse) < 2 else 'are'} worse than the rest"
    hidden = f"; and {len(worse) - len(named)} more" if len(worse) > len(named) else ""
    return ["", f"{count}{'' if worse else ' beyond chance; the nearest to it'}: {'; '.join(named)}{hidden}."]


def _name(row: Mapping[str, Any]) -> str:
    return candidate_name(row["step"], members_in(row))


def _calibration(report: Mapping[str, Any], split: str) -> list[str]:
    """How far probabilities are from the truth, beside what perfect ones would show at this size."""
    if split not in report:
        return []
    scores, scaled, temperature = report[split], report.get(f"{split}_scaled"), report.get("temperature")
    line = f"Calibration: ECE {scores['ece']:.3f} (perfect probabilities: {scores['ece_null_floor']:.3f}), smooth ECE {scores['smooth_ece']:.3f}"
    after = f"; with temperature {temperature:.2f}, fitted on validation, ECE {scaled['ece']:.3f}" if scaled else ""
    return ["", f"{line}{after}."]


def _confusion(matrix: list[Any] | None, labels: list[str]) -> list[str]:
    """Rows are the true classes, columns the predicted ones; many classes would be unreadable."""
    if not matrix or len(matrix) != len(labels) or len(labels) > 20 or isinstance(matrix[0][0], list):
        return []
    rows = [
        ["true \\ predicted", *labels],
        *([label, *map(str, row)] for label, row in zip(labels, matrix, strict=True)),
    ]
    return ["", *markdown_table(rows)]


def markdown_table(rows: list[list[str]]) -> list[str]:
    """A Markdown table; the first row is its head."""
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    padded.insert(1, ["-" * width for width in widths])
    return [f"| {' | '.join(row)} |" for row in padded]


def not_distinguishable(board: dict[str, Any]) -> str:
    """Returns which candidates may be as good as the winner, and what difference this set can show; else an empty text."""
    close = [f"{row['run']} {_name(row)}" for row in board["rows"] if row.get("not_distinguishable")]
    size = board.get("smallest_difference", {}).get(board["metric"])
    detectable = (
        f"differences in {board['metric']} below {size:.3g} do not show at this size (80 % power)" if size else ""
    )
    if not close:
        return detectable
    listed = ", ".join(close[:_NAMED_ROWS]) + (
        f" and {len(close) - _NAMED_ROWS} more" if len(close) > _NAMED_ROWS else ""
    )
    return f"not distinguishable from the winner at this size: {listed}{f'; {detectable}' if detectable else ''}"


def _seed_note(spread: dict[str, Any]) -> str:
    point = describe_settings(spread["settings"])
    error = spread["within_set_error"]
    within = f", standard error within the set {error:.3g}" if error is not None else ""
    deviation = f"standard deviation between seeds {spread['between_seed_sd']:.3g}"
    return f"{spread['runs']} seeds{f' of {point}' if point else ''}: mean {spread['mean']:.4f}, {deviation}{within}"


def format_interval(value: Any, ends: Sequence[float] | None) -> str:
    """`0.845 [0.807, 0.877]`, and the score alone where there is no interval."""
    if ends is None or not isinstance(value, float):
        return format_score(value)
    return f"{value:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"


def format_score(value: Any) -> str:
    return "undefined" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
