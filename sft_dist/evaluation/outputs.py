"""How predictions are written: lines for people, JSON lines, and tables. One output for each input."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sft_dist.evaluation.inputs import Input
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.text import printable

DETAILS = ("probabilities", "masks")  # too long for a line that people read
TABLES = {".csv": ",", ".tsv": "\t"}
_BREAKS = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t"})  # one line for each prediction


@dataclass(frozen=True)
class Prediction:
    """What the model says about an input; `description` is empty where the input could not be read."""

    input: Input
    description: Mapping[str, Any]
    fault: str = ""

    @property
    def values(self) -> dict[str, Any]:
        """Columns taken along, inputs, and what the model says. Raises UserError where two have one name."""
        if taken := set(self.input.columns) & set(self.description):
            message = f"the prediction has a value {min(taken)!r} too"
            raise UserError(Problem(message, "--id", value=min(taken), hint="rename the column"))
        return {**self.input.columns, **self.input.row, **self.description}


def plain_line(prediction: Prediction) -> str:
    """What the model says, then the inputs, separated by tabs."""
    values = [_plain(value) for key, value in prediction.description.items() if key not in DETAILS]
    values = values or [f"error: {prediction.fault}"]
    identities = [_plain(value) for value in prediction.input.columns.values()]
    return "\t".join(
        printable(text.translate(_BREAKS)) for text in (*identities, *values, *prediction.input.row.values())
    )


def json_line(prediction: Prediction) -> str:
    values = {**prediction.values, **({"error": prediction.fault} if prediction.fault else {})}
    return _json(values)


def table_lines(predictions: Iterable[Prediction], delimiter: str) -> Iterator[str]:
    """Lines of a table, its header first. Cells of an input that could not be read are empty: the header waits for the first that
    could."""
    waiting: list[Prediction] = []
    names: list[str] = []
    for prediction in predictions:
        waiting.append(prediction)
        if not names and not prediction.description:
            continue
        if not names:
            names = [name for name in prediction.values if name not in DETAILS]
            yield _row(names, delimiter)
        yield from (_row([entry.values.get(name) for name in names], delimiter) for entry in waiting)
        waiting = []
    if waiting:
        names = list(dict.fromkeys(name for entry in waiting for name in entry.values)) or ["error"]
        yield _row(names, delimiter)
        yield from (_row([entry.values.get(name, entry.fault) for name in names], delimiter) for entry in waiting)


def _row(values: Iterable[Any], delimiter: str) -> str:
    line = io.StringIO()
    csv.writer(line, delimiter=delimiter, lineterminator="").writerow(map(_cell, values))
    return line.getvalue()


def _cell(value: Any) -> Any:
    return _json(value) if isinstance(value, list | dict) else value


def _json(value: Any) -> str:
    """Columns taken along may hold dates, decimals and bytes, which JSON writes as texts."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _plain(value: Any) -> str:
    """Classes as `a,b`; several boxes as `label=cat score=0.9000 box=1.0,2.0,3.0,4.0; label=...`."""
    match value:
        case float():
            return f"{value:.4f}"
        case dict():
            return " ".join(
                f"{key}={','.join(map(str, entry)) if isinstance(entry, list) else _plain(entry)}"
                for key, entry in value.items()
            )
        case list():
            return ("; " if value and isinstance(value[0], dict) else ",").join(map(_plain, value))
    return str(value)
