"""`python docs/tables.py`: writes the tables of these pages that are made from the code. A test holds that they are current."""

from __future__ import annotations

import re
from pathlib import Path

from sft_dist.recipe.strategies import STRATEGIES, tuning_refusal
from sft_dist.recipe.tunings import KINDS, best_form, has_adapter

PAGE = Path(__file__).with_name("strategies.md")
MARKS = re.compile(r"(<!-- table: tunings -->\n).*(<!-- end -->\n)", re.DOTALL)


def tunings() -> str:
    """Kinds of tuning x strategies; refusals are numbered and explained below."""
    notes: list[str] = []
    lines = [f"| tuning | {' | '.join(STRATEGIES)} | export |", f"|---|{'---|' * (len(STRATEGIES) + 1)}"]
    for name, tuning in KINDS.items():
        cells = []
        for strategy in STRATEGIES:
            reason = tuning_refusal(strategy, tuning)
            if reason is not None and reason not in notes:
                notes.append(reason)
            where = " (GPU)" if tuning.method == "qlora" else ""
            cells.append(f"yes{where}" if reason is None else f"no ({notes.index(reason) + 1})")
        forms = (
            "whole" if not has_adapter(tuning) else "merged, adapter" if best_form(tuning) == "merged" else "adapter"
        )
        lines.append(f"| {name} | {' | '.join(cells)} | {forms} |")
    explained = [f"{number}. {reason[0].upper()}{reason[1:]}." for number, reason in enumerate(notes, 1)]
    return "\n".join([*lines, "", *explained, ""])


def current(page: str) -> str:
    """The page with the tables as they should be."""
    return MARKS.sub(lambda match: f"{match[1]}{tunings()}{match[2]}", page)


if __name__ == "__main__":
    PAGE.write_text(current(PAGE.read_text()))
