"""`python -m sft_dist.check RECIPE_JSON`: the data check, on the CPU and before any GPU is requested.

Reads and prepares data with the code that trains, and leaves the result in the cache that the first start uses. Exit code
0: nothing found, or warnings only; 1: errors; 2: the recipe itself is at fault; 3: the check crashed, or a part of it, which
the report then names.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import write_text
from sft_dist.recipe.findings import KINDS
from sft_dist.recipe.fingerprint import file_states
from sft_dist.recipe.schema import Recipe

if TYPE_CHECKING:
    from sft_dist.quality.report import Report
    from sft_dist.quality.subject import Subject

Say = Callable[[str], None]
CRASHED = 3


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    os.umask(0o077)  # the cache, and the page, hold rows
    recipe = Recipe.model_validate_json(options.recipe.read_bytes())
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:5.0f} s  {text}", file=sys.stderr, flush=True)

    say("starting")
    # Imported late: the program says that it starts before seconds of imports.
    from sft_dist.logging_setup import quiet_libraries
    from sft_dist.quality.report import to_json, to_text

    quiet_libraries()
    try:
        report, subject = check(recipe, say, options.runs, options.time)
        report = replace(report, allowed=tuple(options.allow))
        if options.html and importlib.util.find_spec("matplotlib") is None:
            say("no page: matplotlib is not installed (pip install 'sft-dist[check]')")
        elif options.html:
            say(f"writing {options.html}")
            report = _with_page(options.html, report, subject, options.preview)
    except UserError as error:
        print(error.to_json() if options.json else error.render(), file=sys.stdout if options.json else sys.stderr)
        return 2
    except Exception:  # Python would exit with 1, which says that the data has errors
        traceback.print_exc()
        return CRASHED
    content = to_json(report)
    text = json.dumps(content, ensure_ascii=False, indent=2)
    if options.keep:
        # Imported late: the program says that it starts before seconds of imports.
        from sft_dist.quality.source import named_files

        options.keep.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = file_states(named_files(subject.source, recipe) if subject else ())
        write_text(options.keep, json.dumps({**content, "files": files}, ensure_ascii=False), durable=False)
    print(text if options.json else to_text(report))
    return CRASHED if report.is_incomplete else 1 if report.errors else 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sft_dist.check")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--keep", type=Path, help="also write the JSON there")
    parser.add_argument("--html", type=Path, help="also write the page there")
    parser.add_argument("--preview", type=int, default=0, help="examples on the page, before and after augmentation")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        choices=KINDS,
        help="finding to accept although it is an error (repeatable)",
    )
    parser.add_argument("--runs", type=Path, help="where earlier runs are, whose speed is known")
    parser.add_argument("--time", action="store_true", help="measure a few steps here")
    return parser.parse_args(arguments)


def check(
    recipe: Recipe, say: Say = lambda text: None, runs: Path | None = None, timed: bool = False
) -> tuple[Report, Subject | None]:
    """Returns the report and the data it is about. Raises UserError for errors of the recipe itself."""
    # Imported late: the program says that it starts before seconds of imports.
    from sft_dist.quality.build_report import build_report
    from sft_dist.quality.checks import run_checks
    from sft_dist.quality.report import Report
    from sft_dist.quality.source import read_source, recipe_of_first_chunk
    from sft_dist.quality.subject import load_subject
    from sft_dist.tasks import task_of

    if recipe.data.streaming is not None:
        report, subject = check(recipe_of_first_chunk(recipe, say), say, runs, timed)
        return _of_a_stream(report), subject
    task = task_of(recipe)
    with tempfile.TemporaryDirectory(prefix="sft-dist-check-") as scratch:
        source = read_source(recipe, task, Path(scratch), say)
        if not source.tables:
            return Report(recipe.name, recipe.task.type, {}, source.findings), None
        subject = load_subject(recipe, task, source, say)
        findings = [*source.findings, *run_checks(subject, say)]
        return build_report(subject, findings, runs, timed, say), subject


def _of_a_stream(report: Report) -> Report:
    rows = report.rows.get("train", 0)
    note = f"train is a stream: only its beginning was checked, of which {rows:,} rows remain"
    steps = report.estimate and replace(report.estimate, steps_per_epoch=None, tokens_per_epoch=None)
    return replace(report, notes=(note, *report.notes), estimate=steps)


def _with_page(file: Path, report: Report, subject: Subject | None, count: int) -> Report:
    """Writes the page. Returns the report, with a finding where that crashed: what was checked is known nevertheless."""
    # Imported late: the program says that it starts before seconds of imports.
    from sft_dist.quality.checks import crashed

    try:
        _write_page(file, report, subject, count)
    except OSError:
        raise
    except Exception as error:
        traceback.print_exc()
        return replace(report, findings=(*report.findings, crashed("the page", error)))
    return report


def _write_page(file: Path, report: Report, subject: Subject | None, count: int) -> None:
    # Imported late: the program says that it starts before seconds of imports.
    from sft_dist.quality.page import to_html
    from sft_dist.quality.preview import examples

    preview = examples(subject, count) if subject is not None and count else []
    augmented = subject is not None and getattr(subject.task, "augment", None) is not None
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_text(file, to_html(report, preview, augmented), durable=False)


def _leave(number: int, frame: object) -> None:
    """Ends the program with its temporary folders and worker processes."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)
    sys.exit(main(sys.argv[1:]))
