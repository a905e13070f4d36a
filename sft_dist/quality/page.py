"""The report as one HTML file: plots inside it, nothing fetched, readable in light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_dist.quality.findings import in_order
from sft_dist.quality.report import SHOWN_ROWS, Lengths, Report, steps_text

MOST_CLASSES = 30  # drawn; the rest is one bar
_INK = "#010203"  # stands for the page's text colour until the plot is in the page
_COLOURS = {"train": "#3b78c2", "validation": "#d9822b", "test": "#4a9a5b"}


def to_html(report: Report, examples: Sequence[Any] = (), augmented: bool = False) -> str:
    """The page. examples: of `preview.examples`."""
    suspicions = [
        {**suspicion, "text": report.excerpts.get((suspicion["split"], suspicion["row"]), "")}
        for finding in report.findings
        if finding.kind == "suspicious-label"
        for suspicion in finding.details["suspicions"][:100]
    ]
    return _render(
        "page.html",
        report=report,
        findings=in_order(report.findings),
        suspicions=suspicions,
        examples=examples,
        augmented=augmented,
        shown=SHOWN_ROWS,
        steps=steps_text(report.estimate) if report.estimate else "",
        class_plot=class_plot(report.classes, report.class_unit) if any(report.classes.values()) else "",
        length_plot=length_plot(report.lengths, report.longest, report.length_unit) if report.lengths else "",
    )


def class_plot(classes: Mapping[str, Mapping[str, int]], unit: str) -> str:
    """SVG: for each class a bar a split, as a share of the split. Words outside of any name would hide all others."""
    outside = unit == "words" and any("O" in counts_of_split for counts_of_split in classes.values())
    if outside:
        classes = {
            split: {name: n for name, n in counts_of_split.items() if name != "O"}
            for split, counts_of_split in classes.items()
        }
    names = sorted(
        {name for counts_of_split in classes.values() for name in counts_of_split},
        key=lambda name: (-max(counts_of_split.get(name, 0) for counts_of_split in classes.values()), name),
    )
    plotted = names[:MOST_CLASSES]
    figure, axes = _figure(7.2, 0.7 + 0.13 * len(plotted) * (len(classes) + 0.8))
    height = 0.8 / max(len(classes), 1)
    for number, (split, counts) in enumerate(classes.items()):
        total = max(sum(counts.values()), 1)
        offsets = [offset + number * height - 0.4 + height / 2 for offset in range(len(plotted))]
        values = [counts.get(name, 0) for name in plotted]
        axes.barh(offsets, [100 * value / total for value in values], height * 0.9, color=_colour(split), label=split)
        for offset, value in zip(offsets, values, strict=True):
            axes.annotate(
                f"{value:,}", (100 * value / total, offset), (3, 0), textcoords="offset points", va="center", fontsize=7
            )
    labels = [name if len(name) <= 24 else f"{name[:23]}…" for name in plotted]
    axes.set_yticks(range(len(plotted)), labels, parse_math=False)  # a class may be named `$x`
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.01)
    axes.set_xlabel(
        f"% of the {unit} of a split"
        + (f"; {len(names) - len(plotted)} more classes" if len(names) > len(plotted) else "")
    )
    if outside:
        axes.set_title("without O", fontsize=8, color=_INK, loc="left")
    _legend(axes)
    return _svg(figure)


def length_plot(lengths: Mapping[str, Lengths], longest: int | None, unit: str) -> str:
    """SVG: a histogram a split, and where examples are cut."""
    import numpy as np

    figure, axes = _figure(7.2, 2.8)
    top = max((float(of_split.numbers.max()) for of_split in lengths.values() if len(of_split.numbers)), default=1.0)
    all_integers = all((of_split.numbers == np.floor(of_split.numbers)).all() for of_split in lengths.values())
    edges: Any = np.linspace(0, top, 31) if top > 30 or not all_integers else np.arange(0, top + 2) - 0.5
    for split, of_split in lengths.items():
        share = np.full(len(of_split.numbers), 100 / max(len(of_split.numbers), 1))
        axes.hist(
            of_split.numbers, edges, weights=share, histtype="step", linewidth=1.5, color=_colour(split), label=split
        )
    if longest is not None and longest <= 1.5 * top:
        axes.axvline(longest, color="#c23b3b", linestyle="--", linewidth=1.2)
        axes.annotate(
            f"cut at {longest}",
            (longest, 0.97),
            (-4, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right",
            va="top",
            color="#c23b3b",
            fontsize=8,
        )
    axes.set_xlabel(unit)
    axes.set_ylabel("% of a split")
    _legend(axes)
    return _svg(figure)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: nothing global

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(axes: Any) -> None:
    """Beside the plot, where it hides nothing."""
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _svg(figure: Any) -> str:
    """Inline SVG whose ink is the page's text colour, without what changes from call to call."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "check"}):
        for axes in figure.axes:
            axes.tick_params(colors=_INK, labelsize=8)
            axes.xaxis.label.set_color(_INK)
            axes.yaxis.label.set_color(_INK)
            for spine in axes.spines.values():
                spine.set_edgecolor(_INK)
            for text in [*axes.texts, *(axes.get_legend().get_texts() if axes.get_legend() else [])]:
                if text.get_color() == "black":
                    text.set_color(_INK)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt" ', "", text[text.index("<svg") :], count=1).replace(
        _INK, "currentColor"
    )


def _colour(split: str) -> str:
    return _COLOURS.get(split, "#8a6fb0")


def _render(template: str, **values: Any) -> str:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)
