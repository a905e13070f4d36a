"""Predictions of a checkpoint on a split, in a compact file beside its scores: intervals, comparisons and lists of errors need no
second forward pass.

A prediction may be an array, a text, a number, or a list, tuple or mapping of those. All predictions of a split become a few
arrays, one for each place in a prediction, and a form that says how to read them. Nothing is pickled.
"""

from __future__ import annotations

import io
import json
import logging
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from sft_dist.checkpoints.store import Checkpoint
from sft_dist.data.prepare import Prepared
from sft_dist.data.rows import GROUP
from sft_dist.recipe.files import write_bytes

log = logging.getLogger("sft_dist")

_VERSION = 1
_UNSIGNED = (np.uint8, np.uint16, np.uint32, np.uint64)
_SIGNED = (np.int8, np.int16, np.int32, np.int64)
Form = dict[str, Any]
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class SplitPredictions:
    """What a model answers to every example of a split, in the order of the examples."""

    predictions: list[Any]  # as the task makes them
    rows: np.ndarray  # (examples,) row numbers in the source
    groups: np.ndarray | None  # (examples,) number of the group of each example, where the data names groups
    contents: str  # digest of what the rows of the split hold
    losses: np.ndarray | None = None  # (examples, parts) of each example, where the task's scores do not hold them

    @property
    def rows_digest(self) -> str:
        """Equal for predictions of the same rows in the same order, which can be paired."""
        return f"{self.contents} {xxhash.xxh3_128_hexdigest(np.ascontiguousarray(self.rows, dtype=np.int64).data)}"


def predictions_file(checkpoint: Checkpoint, split: str) -> Path:
    return checkpoint.run_folder.evaluation / f"{checkpoint.path.name}.{split}.predictions.npz"


def keep_predictions(
    checkpoint: Checkpoint, split: str, predictions: list[Any], data: Prepared, losses: np.ndarray | None = None
) -> None:
    """Writes the predictions of a checkpoint. Predictions of a plugin's task that have no form are not kept, which is logged."""
    examples = data.examples[split]
    groups = _groups_of(data, split, examples.ids)
    content = SplitPredictions(predictions, examples.ids, groups, data.contents[split], losses)
    file = predictions_file(checkpoint, split)
    try:
        columns = to_columns(content, checkpoint.fingerprint())
    except TypeError as error:
        log.warning("predictions on %s are not kept, so there are no intervals: %s", split, error)
        file.unlink(missing_ok=True)  # of an earlier evaluation of the same weights
        return
    file.parent.mkdir(mode=0o700, exist_ok=True)
    write_bytes(file, _compressed(columns))


def read_predictions(file: Path, fingerprint: str) -> SplitPredictions | None:
    """Returns the predictions of the checkpoint with this fingerprint; None where the file is missing, damaged or of other weights."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            return from_columns({name: archive[name] for name in archive.files}, fingerprint)
    except (OSError, ValueError, KeyError, IndexError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def to_columns(content: SplitPredictions, fingerprint: str) -> Columns:
    """Returns the arrays of a file. Raises TypeError for predictions without a form."""
    form, columns = flatten(content.predictions)
    about = {
        "version": _VERSION,
        "checkpoint": fingerprint,
        "examples": len(content.predictions),
        "contents": content.contents,
        "form": form,
    }
    groups = {} if content.groups is None else {"groups": _narrow(content.groups)}
    losses = {} if content.losses is None else {"losses": content.losses}
    return {"about": _bytes_of(json.dumps(about)), "rows": _narrow(content.rows), **groups, **losses, **columns}


def from_columns(columns: Columns, fingerprint: str) -> SplitPredictions | None:
    """Inverts `to_columns`; None for another fingerprint or version."""
    about = json.loads(columns["about"].tobytes())
    if about["version"] != _VERSION or about["checkpoint"] != fingerprint:
        return None
    predictions = unflatten(about["form"], columns, about["examples"])
    groups = columns["groups"].astype(np.int64) if "groups" in columns else None
    rows, losses = columns["rows"].astype(np.int64), columns.get("losses")  # which earlier versions did not keep
    return SplitPredictions(predictions, rows, groups, about["contents"], losses)


def _compressed(columns: Columns) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **columns)  # type: ignore[arg-type]
    return content.getvalue()


def _groups_of(data: Prepared, split: str, row_ids: np.ndarray) -> np.ndarray | None:
    """(examples,) numbers of groups; a packed example is of the group of its first row."""
    rows = data.splits[split]
    if GROUP not in rows.table.column_names:
        return None
    codes, _ = rows.codes(GROUP)
    order = np.argsort(rows.ids, kind="stable")
    return codes[order[np.searchsorted(rows.ids[order], row_ids)]]


# ── values and columns ──────────────────────────────────────────────────────────────────────────────────────────────
def flatten(values: Sequence[Any], name: str = "prediction") -> tuple[Form, Columns]:
    """Returns the form of values and their arrays. Raises TypeError for values of different or unknown types."""
    kinds = {_kind_of(value) for value in values}
    if len(kinds) > 1:
        raise TypeError(f"{name} is of several types: {', '.join(sorted(kinds))}")
    kind = kinds.pop() if kinds else "none"
    return _FLATTEN[kind](values, name)


def unflatten(form: Form, columns: Columns, count: int, name: str = "prediction") -> list[Any]:
    """Inverts `flatten`: returns `count` values."""
    return _UNFLATTEN[form["kind"]](form, columns, count, name)


def _kind_of(value: Any) -> str:
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.kind not in "biuf":
            raise TypeError(f"an array of {value.dtype} cannot be kept")
        return "array"
    for kind, types in _TYPES.items():
        if type(value) is types:
            return kind
    raise TypeError(f"{type(value).__name__} cannot be kept")


_TYPES: dict[str, Any] = {
    "none": type(None),
    "text": str,
    "truth": bool,
    "integer": int,
    "number": float,
    "list": list,
    "tuple": tuple,
    "mapping": dict,
}


def _flatten_none(values: Sequence[Any], name: str) -> tuple[Form, Columns]:
    return {"kind": "none"}, {}


def _unflatten_none(form: Form, columns: Columns, count: int, name: str) -> list[Any]:
    return [None] * count


def _flatten_array(values: Sequence[Any], name: str) -> tuple[Form, Columns]:
    arrays = [np.asarray(value) for value in values]
    if len({(array.dtype.str, array.ndim) for array in arrays}) > 1:
        raise TypeError(f"{name} has arrays of several types or dimensions")
    dtype, ndim = arrays[0].dtype, arrays[0].ndim
    shapes = np.array([array.shape for array in arrays], dtype=np.int64).reshape(len(arrays), ndim)
    content = np.concatenate([array.reshape(-1) for array in arrays])
    form = {"kind": "array", "dtype": dtype.str, "scalars": isinstance(values[0], np.generic)}
    return form, {f"{name}.values": _narrow(content), f"{name}.shapes": _narrow(shapes)}


def _unflatten_array(form: Form, columns: Columns, count: int, name: str) -> list[Any]:
    content = columns[f"{name}.values"].astype(form["dtype"])
    shapes = columns[f"{name}.shapes"].astype(np.int64)
    ends = np.cumsum(shapes.prod(axis=1))[:-1]
    pieces = zip(np.split(content, ends), shapes.tolist(), strict=True)
    arrays = [piece.reshape(shape) for piece, shape in pieces]
    return [array[()] for array in arrays] if form["scalars"] else arrays


def _flatten_scalars(kind: str, dtype: type) -> Any:
    def flatten_scalars(values: Sequence[Any], name: str) -> tuple[Form, Columns]:
        return {"kind": kind}, {f"{name}.values": _narrow(np.array(values, dtype=dtype))}

    return flatten_scalars


def _unflatten_scalars(form: Form, columns: Columns, count: int, name: str) -> list[Any]:
    return [_TYPES[form["kind"]](value) for value in columns[f"{name}.values"].tolist()]


def _flatten_text(values: Sequence[str], name: str) -> tuple[Form, Columns]:
    """A text that occurs often, such as a tag, is stored once."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(values))}
    encoded = [text.encode(errors="surrogatepass") for text in numbers]
    return {"kind": "text"}, {
        f"{name}.bytes": _bytes_of(b"".join(encoded)),
        f"{name}.lengths": _narrow(np.array([len(text) for text in encoded], dtype=np.int64)),
        f"{name}.codes": _narrow(np.array([numbers[text] for text in values], dtype=np.int64)),
    }


def _unflatten_text(form: Form, columns: Columns, count: int, name: str) -> list[str]:
    content, ends = columns[f"{name}.bytes"].tobytes(), np.cumsum(columns[f"{name}.lengths"], dtype=np.int64).tolist()
    starts = [0, *ends[:-1]]
    texts = [content[start:end].decode(errors="surrogatepass") for start, end in zip(starts, ends, strict=True)]
    return [texts[code] for code in columns[f"{name}.codes"].tolist()]


def _flatten_list(values: Sequence[list[Any]], name: str) -> tuple[Form, Columns]:
    form, columns = flatten([item for value in values for item in value], f"{name}.item")
    sizes = np.array([len(value) for value in values], dtype=np.int64)
    return {"kind": "list", "items": form}, {f"{name}.sizes": _narrow(sizes), **columns}


def _unflatten_list(form: Form, columns: Columns, count: int, name: str) -> list[Any]:
    sizes = columns[f"{name}.sizes"].tolist()
    items = iter(unflatten(form["items"], columns, sum(sizes), f"{name}.item"))
    return [[next(items) for _ in range(size)] for size in sizes]


def _flatten_mapping(values: Sequence[dict[str, Any]], name: str) -> tuple[Form, Columns]:
    keys = list(values[0])
    if any(list(value) != keys for value in values) or not all(isinstance(key, str) for key in keys):
        raise TypeError(f"{name} has mappings with different keys, or keys that are no text")
    return _flatten_fields("mapping", keys, [[value[key] for value in values] for key in keys], name)


def _flatten_tuple(values: Sequence[tuple[Any, ...]], name: str) -> tuple[Form, Columns]:
    sizes = {len(value) for value in values}
    if len(sizes) > 1:
        raise TypeError(f"{name} has tuples of several lengths")
    return _flatten_fields("tuple", [str(position) for position in range(sizes.pop())], list(zip(*values)), name)  # noqa: B905


def _flatten_fields(kind: str, keys: list[str], fields: Sequence[Any], name: str) -> tuple[Form, Columns]:
    forms: list[Form] = []
    columns: Columns = {}
    for position, values in enumerate(fields):
        form, arrays = flatten(values, f"{name}.{position}")
        forms.append(form)
        columns |= arrays
    return {"kind": kind, "keys": keys, "fields": forms}, columns


def _fields(form: Form, columns: Columns, count: int, name: str) -> list[list[Any]]:
    return [unflatten(field, columns, count, f"{name}.{number}") for number, field in enumerate(form["fields"])]


def _unflatten_mapping(form: Form, columns: Columns, count: int, name: str) -> list[Any]:
    fields = _fields(form, columns, count, name)
    return [dict(zip(form["keys"], [field[i] for field in fields], strict=True)) for i in range(count)]


def _unflatten_tuple(form: Form, columns: Columns, count: int, name: str) -> list[Any]:
    fields = _fields(form, columns, count, name)
    return [tuple(field[i] for field in fields) for i in range(count)]


_FLATTEN: dict[str, Any] = {
    "none": _flatten_none,
    "array": _flatten_array,
    "text": _flatten_text,
    "truth": _flatten_scalars("truth", bool),
    "integer": _flatten_scalars("integer", np.int64),
    "number": _flatten_scalars("number", np.float64),
    "list": _flatten_list,
    "tuple": _flatten_tuple,
    "mapping": _flatten_mapping,
}
_UNFLATTEN: dict[str, Any] = {
    "none": _unflatten_none,
    "array": _unflatten_array,
    "text": _unflatten_text,
    "truth": _unflatten_scalars,
    "integer": _unflatten_scalars,
    "number": _unflatten_scalars,
    "list": _unflatten_list,
    "tuple": _unflatten_tuple,
    "mapping": _unflatten_mapping,
}


def _narrow(values: np.ndarray) -> np.ndarray:
    """Integers in the smallest type that holds them all; floats as they are, since scores must come out the same."""
    if values.dtype.kind not in "iu" or not values.size:
        return values
    low, high = int(values.min()), int(values.max())
    types = _UNSIGNED if low >= 0 else _SIGNED
    return values.astype(next(t for t in types if np.iinfo(t).min <= low and high <= np.iinfo(t).max))


def _bytes_of(content: str | bytes) -> np.ndarray:
    return np.frombuffer(content.encode() if isinstance(content, str) else content, dtype=np.uint8)
