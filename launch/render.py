"""Texts for people: plans, states, progress. Pure; nothing here decides anything."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_dist.recipe.text import format_table
from sft_dist.recipe.units import format_duration
from sft_dist.run.varying import describe_settings, format_setting

if TYPE_CHECKING:
    from launch.plan import Plan
    from launch.run_state import RunState

MAX_POINTS = 8
MAX_ROWS = 20
BAR_CHARS = 12
SPARK_CHARS = 16
SPARKS = "▁▂▃▄▅▆▇█"


# ── plans ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def describe_plans(plans: Sequence[tuple[Plan, str]]) -> str:
    """(plan, state of its folder) pairs: a single plan in full, or a table of many with the first in full."""
    if len(plans) == 1:
        return describe_plan(*plans[0])
    keys = list(dict.fromkeys(key for plan, _ in plans for key in plan.point))
    rows = [
        [
            plan.folder.name,
            *(format_setting(plan.point.get(key, "")) for key in keys),
            _short_batch(plan),
            _total(plan),
            state,
        ]
        for plan, state in plans[:MAX_ROWS]
    ]
    text = format_table(["run", *keys, "batch", "steps", "state"], rows)
    if len(plans) > MAX_ROWS:
        text += f"\nand {len(plans) - MAX_ROWS:,} more (--json lists them all)"
    first = plans[0][0]
    head = f"{first.name}: {len(plans):,} runs in {first.folder.parent}\n\n"
    warnings = list(dict.fromkeys(warning for plan, _ in plans for warning in plan.warnings))
    notes = "".join(f"\nwarning: {warning}" for warning in warnings)
    return f"{head}{text}\n{notes}\n\nThe first run:\n\n{describe_plan(*plans[0], warnings=False)}"


def describe_plan(plan: Plan, state: str, warnings: bool = True) -> str:
    lines = [f"{plan.name}/{plan.folder.name}  ({state})"]
    if plan.point:
        lines.append(_field("point", ", ".join(f"{key}={format_setting(value)}" for key, value in plan.point.items())))
    lines.append(_field("batch", batch_equation(plan)))
    lines.append(_field("examples", _examples(plan)))
    lines += _steps(plan)
    lines.append(_field("strategy", _strategy(plan)))
    lines.append(_field("command", describe_command(plan.argv)))
    lines.append(_field("environment", "\n".join(f"{key}={shlex.quote(value)}" for key, value in plan.env.items())))
    lines.append(_field("folder", str(plan.folder)))
    lines.append(_field("writes", ", ".join(plan.files)))
    if warnings:
        lines += [_field("warning", warning) for warning in plan.warnings]
    return "\n".join(lines)


def _strategy(plan: Plan) -> str:
    processes = _count(plan.world_size, f"{plan.device.upper()} process", "es")
    threads = _count(plan.threads_per_process, "thread")
    return f"{describe_strategy(plan.strategy)}, because {plan.reason}; {processes}, {threads} each"


def describe_strategy(strategy: Mapping[str, Any]) -> str:
    """`zero3 (offload_optimizer: cpu)`: options at their defaults are omitted."""
    options = {key: value for key, value in strategy.items() if key != "name" and value not in ("none", None, True)}
    text = ", ".join(f"{key}: {'no' if value is False else format_setting(value)}" for key, value in options.items())
    return f"{strategy['name']} ({text})" if text else str(strategy["name"])


def batch_equation(plan: Plan) -> str:
    batch = plan.batch
    return (
        f"{_count(plan.nodes, 'node')} x {_count(plan.processes_per_node, 'process', 'es')} x {batch.micro_batch} micro-batch"
        f" x {batch.accumulation} accumulation = {batch.global_batch}"
    )


def describe_command(argv: Sequence[str]) -> str:
    """Returns a shell line, wrapped at its flags."""
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


def describe_steps(steps: Sequence[int]) -> str:
    """`50, 100, 150, ... 900, 950, 1000 (20)`."""
    if len(steps) <= MAX_POINTS:
        return ", ".join(map(str, steps))
    head, tail = ", ".join(map(str, steps[:3])), ", ".join(map(str, steps[-3:]))
    return f"{head}, ... {tail} ({len(steps):,} in all)"


def _steps(plan: Plan) -> list[str]:
    if plan.steps is None:
        return [_field("steps", f"not known before the data is read ({plan.rows.unknown})")]
    steps, per_epoch = plan.steps, plan.steps.steps_per_epoch
    length = f"= {steps.total / per_epoch:.4g} epochs of {per_epoch:,}" if per_epoch else "of a stream"
    return [
        _field("steps", f"{steps.total:,} {length}, warm-up {steps.warmup:,}"),
        _field("validates at", describe_steps(steps.eval_points)),
        _field("saves at", describe_steps(steps.save_points)),
    ]


def _examples(plan: Plan) -> str:
    if not plan.rows.splits:
        return "not counted"
    streamed = ["a training stream"] if plan.rows.train is None else []
    text = ", ".join([*streamed, *(f"{count:,} {split}" for split, count in plan.rows.splits.items())])
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in plan.rows.dropped.items() if count)
    labels = f"; {len(plan.rows.labels)} labels" if plan.rows.labels else ""
    return text + (f" (dropped: {dropped})" if dropped else "") + labels


def _short_batch(plan: Plan) -> str:
    batch = plan.batch
    return f"{plan.nodes}x{plan.processes_per_node}x{batch.micro_batch}x{batch.accumulation}={batch.global_batch}"


def _total(plan: Plan) -> str:
    return f"{plan.steps.total:,}" if plan.steps else "?"


def _field(name: str, text: str) -> str:
    first, *continuation = text.split("\n")
    return "\n".join([f"  {name:<13}{first}", *(f"  {'':<13}{line}" for line in continuation)])


def _count(count: int, noun: str, ending: str = "s") -> str:
    return f"{count} {noun}{ending if count != 1 else ''}"


# ── states and progress ─────────────────────────────────────────────────────────────────────────────────────────────
def describe_run_states(states: Sequence[RunState]) -> str:
    rows = [
        {
            "run": f"{run.name}/{run.id}",
            "settings": describe_settings(run.point),
            "state": run.state,
            "step": f"{run.step}/{run.total_steps or '?'}",
            "loss": "" if run.loss is None else f"{run.loss:.4f}",
            "best score": "" if run.best_score is None else f"{run.best_score:.4f} at {run.best_step}",
            "left": "" if run.eta_s is None else format_duration(run.eta_s),
            "attempts": str(run.attempts),
            "job": run.job,
        }
        for run in states
    ]
    # A column that is empty for all runs would only push the others off the screen.
    unused = {name for name in ("settings", "best score", "job") if not any(row[name] for row in rows)}
    head = [name for name in rows[0] if name not in unused]
    text = format_table(head, [[row[name] for name in head] for row in rows])
    explained = ("failed", "killed", "stopped", "pending", "ending", "sealed", "unreadable")
    causes = [f"{_run_name(run)}: {run.cause}" for run in states if run.cause and run.state in explained]
    causes += [
        f"warning: {_run_name(run)}: changed since the run was made: {', '.join(run.changed)}"
        for run in states
        if run.changed
    ]
    return "\n".join([text, *([""] if causes else []), *causes])


def _run_name(run: RunState) -> str:
    settings = describe_settings(run.point)
    return f"{run.name}/{run.id}{f' ({settings})' if settings else ''}"


def describe_end(run: RunState, resume: str) -> str:
    """Tells how a run ended, and what to do next."""
    summary = f"{run.name}/{run.id} {run.state} at step {run.step}/{run.total_steps or '?'}"
    if run.state == "finished":
        return f"{summary}\n  {run.folder}"
    text = f"{summary}: {run.cause}" if run.cause else summary
    return f"{text}\n  fix the recipe and run it again" if run.user_error else f"{text}\n  resume with: {resume}"


def train_line(entry: dict[str, Any]) -> str:
    texts = [f"step {entry.get('step')}/{entry.get('total_steps')}"]
    if (loss := entry.get("loss")) is not None:
        texts.append(f"loss {loss:.4f}")
    if (lr := entry.get("lr")) is not None:
        texts.append(f"lr {lr:.2e}")
    if (speed := entry.get("examples_per_s")) is not None:
        texts.append(f"{speed:.1f} examples/s")
    if (eta_s := entry.get("eta_s")) is not None:
        texts.append(f"{format_duration(eta_s)} left")
    return "  ".join(texts)


def live_line(entry: Mapping[str, Any], losses: Sequence[float | None], width: int, unicode: bool = True) -> str:
    """`[████░░░░] 120/400  loss 0.5312 █▅▂▁  3:20 left  41.9 examples/s  1.9 GB`: what fits into the width, the step first.

    `losses`: of all steps so far that were logged, None where a loss was NaN or infinite.
    """
    step, total = entry.get("step") or 0, entry.get("total_steps") or 0
    loss, eta_s, speed, memory = (entry.get(name) for name in ("loss", "eta_s", "examples_per_s", "memory_gb"))
    curve = f" {spark_line(losses)}" if unicode and losses else ""
    texts = {  # in the order of the line
        "bar": progress_bar(step / total if total else 0.0, unicode),
        "step": f"{step}/{total or '?'}",
        "loss": "" if loss is None else f"loss {loss:.4f}",
        "curve": "" if loss is None else f"loss {loss:.4f}{curve}",
        "left": "" if eta_s is None else f"{format_duration(eta_s)} left",
        "speed": "" if speed is None else f"{speed:.1f} examples/s",
        "memory": "" if memory is None else f"{memory:.1f} GB",
    }
    names = ["step"]
    for name in ("loss", "left", "bar", "curve", "memory", "speed"):  # the most useful first
        wider = [key for key in texts if key in (*names, name) and texts[key] and (key, name) != ("loss", "curve")]
        if len("  ".join(texts[key] for key in wider)) <= width:
            names = wider
    return "  ".join(texts[key] for key in names)[:width]


def progress_bar(share: float, unicode: bool = True) -> str:
    full, empty = ("█", "░") if unicode else ("#", "-")
    count = min(BAR_CHARS, int(share * BAR_CHARS))
    return f"[{full * count}{empty * (BAR_CHARS - count)}]"


def spark_line(values: Sequence[float | None], width: int = SPARK_CHARS) -> str:
    """Draws a curve in one line of text, each character the mean of as many values; a gap where all of them are None."""
    count = min(width, len(values))
    bounds = [round(position * len(values) / count) for position in range(count + 1)] if count else []
    groups = [[value for value in values[a:b] if value is not None] for a, b in pairwise(bounds)]
    means = [sum(group) / len(group) if group else None for group in groups]
    numbers = [mean for mean in means if mean is not None]
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(" " if mean is None else SPARKS[round((mean - low) * scale)] for mean in means)


def validation_line(entry: dict[str, Any]) -> str:
    values = {key: value for key, value in entry.items() if isinstance(value, float) and key not in ("time", "epoch")}
    scores = ", ".join(f"{key} {value:.4f}" for key, value in list(values.items())[:3])
    return f"step {entry.get('step')}: validation {scores}"


def tail(file: Path, lines: int) -> str:
    """Returns the last lines of a log."""
    try:
        return "\n".join(file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
