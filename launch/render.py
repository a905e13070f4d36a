"""Texts for people: plans, states, progress. Pure; nothing here decides anything."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_dist.recipe.text import format_table
from sft_dist.recipe.units import format_duration

if TYPE_CHECKING:
    from launch.plan import Plan
    from launch.run_state import RunState

MOST_POINTS = 8
MOST_ROWS = 20


# ── plans ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def plans(found: Sequence[tuple[Plan, str]]) -> str:
    """(plan, state of its folder) pairs: one in full, or a table of many with the first in full."""
    if len(found) == 1:
        return one_plan(*found[0])
    keys = list(dict.fromkeys(key for plan, _ in found for key in plan.point))
    rows = [
        [plan.folder.name, *(short(plan.point.get(key, "")) for key in keys), _batch_short(plan), _total(plan), state]
        for plan, state in found[:MOST_ROWS]
    ]
    text = format_table(["run", *keys, "batch", "steps", "state"], rows)
    if len(found) > MOST_ROWS:
        text += f"\nand {len(found) - MOST_ROWS:,} more (--json lists them all)"
    head = f"{found[0][0].name}: {len(found):,} runs in {found[0][0].folder.parent}\n\n"
    warned = list(dict.fromkeys(f"{warning}" for plan, _ in found for warning in plan.warnings))
    notes = "".join(f"\nwarning: {warning}" for warning in warned)
    return f"{head}{text}\n{notes}\n\nThe first of them:\n\n{one_plan(*found[0], warnings=False)}"


def one_plan(plan: Plan, state: str, warnings: bool = True) -> str:
    lines = [f"{plan.name}/{plan.folder.name}  ({state})"]
    if plan.point:
        lines.append(_field("point", ", ".join(f"{key}={short(value)}" for key, value in plan.point.items())))
    lines.append(_field("batch", batch_equation(plan)))
    lines.append(_field("examples", _rows(plan)))
    lines += _steps(plan)
    where = f"{plan.world_size} {plan.device.upper()} process{'es' if plan.world_size > 1 else ''}"
    threads = f"{plan.threads_per_process} thread{'s' if plan.threads_per_process > 1 else ''} each"
    lines.append(_field("strategy", f"{strategy(plan.strategy)}, because {plan.why}; {where}, {threads}"))
    lines.append(_field("command", command(plan.argv)))
    lines.append(_field("environment", "\n".join(f"{key}={shlex.quote(value)}" for key, value in plan.env.items())))
    lines.append(_field("folder", str(plan.folder)))
    lines.append(_field("writes", ", ".join(plan.files)))
    if warnings:
        lines += [_field("warning", warning) for warning in plan.warnings]
    return "\n".join(lines)


def strategy(chosen: Mapping[str, Any]) -> str:
    """`zero3 (offload_optimizer: cpu)`: options that are as always are left out."""
    options = {key: value for key, value in chosen.items() if key != "name" and value not in ("none", None, True)}
    shown = ", ".join(f"{key}: {'no' if value is False else short(value)}" for key, value in options.items())
    return f"{chosen['name']} ({shown})" if shown else str(chosen["name"])


def batch_equation(plan: Plan) -> str:
    b = plan.batch
    return (
        f"{_many(plan.nodes, 'node')} x {_many(plan.processes_per_node, 'process', 'es')} x {b.micro_batch} micro-batch"
        f" x {b.accumulation} accumulation = {b.global_batch}"
    )


def command(argv: Sequence[str]) -> str:
    """A shell line, cut at its flags."""
    lines = [""]
    for word in map(shlex.quote, argv):
        if word.startswith("--") or (word == "-m" and len(lines) > 1):
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    packed = [lines[0]]
    for line in lines[1:]:
        if len(packed[-1]) + len(line) < 90:
            packed[-1] += f" {line}"
        else:
            packed.append(line)
    return " \\\n  ".join(packed)


def points(steps: Sequence[int]) -> str:
    """`50, 100, 150, ... 900, 950, 1000 (20)`."""
    if len(steps) <= MOST_POINTS:
        return ", ".join(map(str, steps))
    head, tail = ", ".join(map(str, steps[:3])), ", ".join(map(str, steps[-3:]))
    return f"{head}, ... {tail} ({len(steps):,} in all)"


def _steps(plan: Plan) -> list[str]:
    if plan.steps is None:
        return [_field("steps", f"not known before the data is read ({plan.rows.unknown})")]
    s = plan.steps
    per_epoch = s.steps_per_epoch
    length = f"= {s.total / per_epoch:.4g} epochs of {per_epoch:,}" if per_epoch else "of a stream"
    return [
        _field("steps", f"{s.total:,} {length}, warm-up {s.warmup:,}"),
        _field("validates at", points(s.eval_points)),
        _field("saves at", points(s.save_points)),
    ]


def _rows(plan: Plan) -> str:
    if not plan.rows.splits:
        return "not counted"
    streamed = ["a stream to train on"] if plan.rows.train is None else []
    text = ", ".join([*streamed, *(f"{count:,} {split}" for split, count in plan.rows.splits.items())])
    dropped = ", ".join(f"{count:,} {why}" for why, count in plan.rows.dropped.items() if count)
    labels = f"; {len(plan.rows.labels)} labels" if plan.rows.labels else ""
    return text + (f" (dropped: {dropped})" if dropped else "") + labels


def _batch_short(plan: Plan) -> str:
    b = plan.batch
    return f"{plan.nodes}x{plan.processes_per_node}x{b.micro_batch}x{b.accumulation}={b.global_batch}"


def _total(plan: Plan) -> str:
    return f"{plan.steps.total:,}" if plan.steps else "?"


def _field(name: str, text: str) -> str:
    first, *more = text.split("\n")
    return "\n".join([f"  {name:<13}{first}", *(f"  {'':<13}{line}" for line in more)])


def _many(count: int, noun: str, ending: str = "s") -> str:
    return f"{count} {noun}{ending if count != 1 else ''}"


# ── states and progress ─────────────────────────────────────────────────────────────────────────────────────────────
def states(found: Sequence[RunState]) -> str:
    rows = [
        {
            "run": f"{run.name}/{run.id}",
            "state": run.state,
            "step": f"{run.step}/{run.total_steps or '?'}",
            "loss": "" if run.loss is None else f"{run.loss:.4f}",
            "best score": "" if run.best_score is None else f"{run.best_score:.4f} at {run.best_step}",
            "left": "" if run.eta_s is None else format_duration(run.eta_s),
            "attempts": str(run.attempts),
            "job": run.job,
        }
        for run in found
    ]
    # A column that no run has anything to say in would only push the others off the screen.
    unused = {name for name in ("best score", "job") if not any(row[name] for row in rows)}
    head = [name for name in rows[0] if name not in unused]
    text = format_table(head, [[row[name] for name in head] for row in rows])
    told = ("failed", "killed", "stopped", "pending", "ending", "sealed")
    causes = [f"{run.name}/{run.id}: {run.cause}" for run in found if run.cause and run.state in told]
    return "\n".join([text, *([""] if causes else []), *causes])


def verdict(run: RunState, resume: str) -> str:
    """One run's end, and what to do next."""
    what = f"{run.name}/{run.id} {run.state} at step {run.step}/{run.total_steps or '?'}"
    if run.state == "finished":
        return f"{what}\n  {run.folder}"
    text = f"{what}: {run.cause}" if run.cause else what
    return f"{text}\n  mend the recipe and run it again" if run.user_error else f"{text}\n  go on with: {resume}"


def train_line(entry: dict[str, Any]) -> str:
    parts = [f"step {entry.get('step')}/{entry.get('total_steps')}"]
    if (loss := entry.get("loss")) is not None:
        parts.append(f"loss {loss:.4f}")
    if (rate := entry.get("lr")) is not None:
        parts.append(f"lr {rate:.2e}")
    if (speed := entry.get("examples_per_s")) is not None:
        parts.append(f"{speed:.1f} examples/s")
    if (left := entry.get("eta_s")) is not None:
        parts.append(f"{format_duration(left)} left")
    return "  ".join(parts)


def validation_line(entry: dict[str, Any]) -> str:
    shown = {key: value for key, value in entry.items() if isinstance(value, float) and key not in ("time", "epoch")}
    scores = ", ".join(f"{key} {value:.4f}" for key, value in list(shown.items())[:3])
    return f"step {entry.get('step')}: validation {scores}"


def short(value: Any, most: int = 40) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def tail(file: Path, lines: int) -> str:
    """The last lines of a log."""
    try:
        return "\n".join(file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
