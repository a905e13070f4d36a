"""The summary: what was trained, how good it is, whether that is significant, and what to do next. Pure: sentences from the page's data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launch.report.values import is_number
from sft_dist.run.varying import format_setting

LOW_GOODPUT = 0.5
MAX_NAMED_SLICES = 3
METHOD_NAMES = {"lora": "LoRA", "qlora": "QLoRA", "bitfit": "BitFit", "ia3": "IA3"}  # as their authors write them
MIN_HOURS_FOR_GOODPUT = 0.25  # below it, loading is most of any run
UNFINISHED = ("failed", "killed", "stopped")


def summarise(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns sentences by their role: trained, result, significance, next."""
    return {
        "trained": _trained(data) if data["runs"] else "",
        "result": [sentence for table in data["leaderboards"] for sentence in _result(data, table)],
        "significance": [sentence for table in data["leaderboards"] for sentence in _significance(table)],
        "next": list(_next_steps(data)),
    }


# ── what was trained ────────────────────────────────────────────────────────────────────────────────────────────────
def _trained(data: Mapping[str, Any]) -> str:
    settings = data["settings"]
    task = settings.get("task.type")
    tuning, model = settings.get("tuning.method"), settings.get("model.path")
    words = [
        f"{METHOD_NAMES.get(tuning, tuning)} tuning" if tuning else "Training",
        f"of {model}" if model else "of several models",
        f"for {task}" if task else "for several tasks",
        f"on {_source(settings)}",
    ]
    return _sentence(f"{' '.join(words)}{_rows(data)}{_varied(data)}")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _source(settings: Mapping[str, Any]) -> str:
    """One source, the training file of several, or whatever the runs do not share."""
    source = settings.get("data.source", settings.get("data.source.train"))
    return source if isinstance(source, str) else "several data sets"


def _rows(data: Mapping[str, Any]) -> str:
    counts = {(card["card"]["splits"].get("train") or {}).get("rows") for card in data["data"]} - {None}
    return f", {counts.pop():,} training rows" if len(counts) == 1 else ""


def _varied(data: Mapping[str, Any]) -> str:
    if len(data["runs"]) == 1:
        return ""
    varying = ", ".join(data["varying"][:4]) + (" and more" if len(data["varying"]) > 4 else "")
    return f"; {len(data['runs'])} runs" + (f" that vary {varying}" if varying else "")


# ── how good, and is it significant ─────────────────────────────────────────────────────────────────────────────────
def _result(data: Mapping[str, Any], table: Mapping[str, Any]) -> Iterator[str]:
    metric = table["metric"]
    if final := table["final"]:
        name = data["runs"][final["run"]]["name"]
        scores = [
            f"{_format(scores[metric])}{_interval(final, split, metric)} on {split}"
            + (f" ({scores['examples']:,} examples)" if isinstance(scores.get("examples"), int) else "")
            for split, scores in sorted(final["scores"].items())
            if scores.get(metric) is not None
        ]
        if scores:
            candidate = final.get("mean") or f"step {final['step']}"
            yield f"Best by {metric}: {name}, {candidate}: {', '.join(scores)}."
    yield from (f"Warning: {note}." for note in table["notes"])


def _interval(final: Mapping[str, Any], split: str, metric: str) -> str:
    interval = (final["intervals"].get(split) or {}).get(metric)
    return f" [{_format(interval[0])}, {_format(interval[1])}]" if interval else ""


def _significance(table: Mapping[str, Any]) -> Iterator[str]:
    rows = table["rows"]
    tested = [row for row in rows[1:] if row.get("p_value") is not None]
    if tested:
        equal = sum(bool(row.get("not_distinguishable")) for row in tested)
        yield (
            f"{equal} of the {len(tested)} other checkpoints {'is' if equal == 1 else 'are'} not distinguishable from the best at this size."
            if equal
            else f"The best differs significantly from all {len(tested)} other checkpoints."
        )
    if (difference := table["smallest_difference"].get(table["metric"])) is not None:
        yield f"The smallest difference in {table['metric']} that this validation set can show is {_format(difference)}."
    yield from (_sentence(note) for note in (table["selection_note"], table["test_note"]) if note)
    yield from _worse_slices(table)


def _worse_slices(table: Mapping[str, Any]) -> Iterator[str]:
    slices = (table["final"] or {}).get("slices") or {}
    split = next((name for name in ("test", "validation") if name in slices), "")
    worse = [f"{entry['by']} {entry['slice']}" for entry in slices.get(split, []) if entry["worse"]]
    if worse:
        hidden = f" and {len(worse) - MAX_NAMED_SLICES} more" if len(worse) > MAX_NAMED_SLICES else ""
        named = ", ".join(worse[:MAX_NAMED_SLICES])
        yield f"On {split} it is worse than on the rest where {named}{hidden}."


def _format(value: float) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


# ── what next ───────────────────────────────────────────────────────────────────────────────────────────────────────
def _next_steps(data: Mapping[str, Any]) -> Iterator[str]:
    runs = data["runs"]
    yield from _unfinished(runs)
    if not data["leaderboards"] and any(run["state"] == "finished" for run in runs):
        yield f"No checkpoint is evaluated yet: `sft-dist eval {' '.join(dict.fromkeys(run['recipe'] for run in runs))}`."
    for table in data["leaderboards"]:
        yield from _of_best_run(data, table)
        yield from _edges(data, table)
    yield from _low_goodput(data)


def _unfinished(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    states = Counter(run["state"] for run in runs)
    for state in UNFINISHED:
        if not states[state]:
            continue
        run = next(run for run in runs if run["state"] == state)
        cause = f": {run['cause']}" if run["cause"] else ""
        subject = (
            f"{run['name']} {state}{cause}" if states[state] == 1 else f"{states[state]} runs {state}, the first{cause}"
        )
        yield f"{subject}. `sft-dist resume {run['recipe']}/{run['id']}` continues from its newest checkpoint."


def _of_best_run(data: Mapping[str, Any], table: Mapping[str, Any]) -> Iterator[str]:
    """Whether the best run was trained too long or too short, by the place of its best checkpoint."""
    run = table["rows"][0]["run"]
    ranking = [row for row in table["rows"] if row["run"] == run and "mean" not in row]
    rows = sorted(ranking, key=lambda row: row["step"])
    total = data["runs"][run]["total_steps"]
    if len(rows) < 3 or not total:
        return
    best = ranking[0]
    if best["step"] == rows[-1]["step"] == total:
        yield "The last checkpoint of the best run is its best: longer training may still gain."
    losses = [row["scores"].get("loss") for row in rows if row["step"] >= best["step"]]
    if (
        len(losses) > 2
        and all(loss is not None for loss in losses)
        and losses == sorted(losses)
        and losses[-1] > losses[0]
    ):
        yield (
            f"The validation loss of the best run rises from step {best['step']:,} on: it over-fits, so fewer epochs or"
            " `train.early_stopping` save time."
        )


def _edges(data: Mapping[str, Any], table: Mapping[str, Any]) -> Iterator[str]:
    """Settings whose best value is the smallest or the largest of at least three values."""
    point = data["runs"][table["rows"][0]["run"]]["point"]
    for key in data["varying"]:
        values = sorted({run["point"].get(key) for run in data["runs"] if is_number(run["point"].get(key))})
        if len(values) >= 3 and not key.endswith("seed") and point.get(key) in (values[0], values[-1]):
            end = "smallest" if point[key] == values[0] else "largest"
            yield f"The best {key}, {format_setting(point[key])}, is the {end} tried: the optimum may lie beyond."


def _low_goodput(data: Mapping[str, Any]) -> Iterator[str]:
    cost = data["cost"]
    if cost["goodput"] is None or cost["goodput"] >= LOW_GOODPUT or cost["total"] < MIN_HOURS_FOR_GOODPUT * 3600:
        return
    seconds = {kind: value for kind, value in cost["seconds"].items() if kind != "training"}
    largest = max(seconds, key=lambda kind: seconds[kind])
    yield f"Only {cost['goodput']:.0%} of the time trained the final weights; most of the rest was {largest}."
