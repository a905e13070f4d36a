"""Reading rows: files, folders and hub data sets through `datasets`, whatever their format."""

from __future__ import annotations

from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, concatenate_datasets, load_dataset, load_from_disk
from datasets.utils.logging import disable_progress_bar

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.references import classify, resolve
from sft_dist.recipe.run_folder import cache_root
from sft_dist.recipe.schema import SPLITS, Data, SplitSources

# File suffix -> (loader, its options). Empty cells are missing; the text "NA" is a text.
_CSV = {"keep_default_na": False, "na_values": [""]}
LOADERS: dict[str, tuple[str, dict]] = {
    ".csv": ("csv", _CSV),
    ".tsv": ("csv", {**_CSV, "sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
}
HUB_SPLITS = {"validation": ("validation", "valid", "dev", "val"), "test": ("test",), "train": ("train",)}


def load_rows(data: Data) -> dict[str, Dataset]:
    """Split name -> rows as they are in the source; always has `train`. Raises UserError."""
    disable_progress_bar()
    if isinstance(data.source, SplitSources):
        named = {split: getattr(data.source, split) for split in SPLITS}
        rows = {}
        for split, source in named.items():
            if source is not None:
                found = _load(source, data)
                if split not in found and set(found) != {"train"}:  # a data set with splits of its own, this one not
                    raise _lacks(split, found, f"data.source.{split}")
                rows[split] = found[split if split in found else "train"]
        return rows
    found = _load(data.source, data)
    if "train" not in found:
        raise _lacks("train", found, "data.source")
    return {split: found[split] for split in SPLITS if split in found}


def _lacks(split: str, found: dict[str, Dataset], path: str) -> UserError:
    named = "training" if split == "train" else split
    return UserError(Problem(f"has no {named} split", path=path, found=f"splits {', '.join(found)}"))


def _load(source: str | list[str], data: Data) -> dict[str, Dataset]:
    parts = [_load_one(text, data) for text in ([source] if isinstance(source, str) else source)]
    if len(parts) == 1:
        return parts[0]
    if any(set(part) != {"train"} for part in parts):
        raise UserError(Problem("a list of sources cannot hold data sets with splits of their own", path="data.source"))
    try:
        return {"train": concatenate_datasets([part["train"] for part in parts])}
    except ValueError as error:
        raise UserError(Problem(f"the sources cannot be joined: {error}", path="data.source")) from error


def _load_one(text: str, data: Data) -> dict[str, Dataset]:
    where = resolve(classify(text, Path.cwd()))
    try:
        if isinstance(where, str):
            loaded = load_dataset(where, data.subset, revision=data.revision)
        elif isinstance(where, Path) and where.is_dir():
            loaded = _load_folder(where)
        else:
            loaded = _load_files([where] if isinstance(where, Path) else where)
    except UserError:
        raise
    except Exception as error:  # every reader has its own exceptions; the cause is what the user needs
        cause = error.__cause__ or error
        raise UserError(
            Problem(f"could not be read: {type(cause).__name__}: {cause}", path="data.source", found=text)
        ) from error
    if isinstance(loaded, Dataset):
        return {"train": loaded}
    return _named_splits(loaded)


def _load_folder(folder: Path) -> Dataset | DatasetDict:
    if (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists():
        return load_from_disk(str(folder))
    formats = {path.suffix.lower() for path in folder.rglob("*")} & set(LOADERS)
    options = _CSV if formats and formats <= {".csv", ".tsv"} else {}
    return load_dataset(str(folder), cache_dir=_cache(), **options)


def _load_files(files: list[Path]) -> Dataset:
    suffixes = {path.suffix.lower() for path in files}
    if len(suffixes) > 1 or not suffixes <= set(LOADERS):
        raise UserError(
            Problem(
                "files of one known format are needed",
                path="data.source",
                found=", ".join(sorted(suffixes)),
                valid=tuple(LOADERS),
            )
        )
    loader, options = LOADERS[suffixes.pop()]
    names = [str(path) for path in files]
    try:
        return load_dataset(loader, data_files=names, split="train", cache_dir=_cache(), **options)
    except ValueError as error:
        if "corresponds to no data" not in str(error):
            raise
        raise UserError(Problem("there is no row in it", path="data.source", found=", ".join(names))) from error


def _named_splits(loaded: DatasetDict) -> dict[str, Dataset]:
    """Splits by this program's names; those it does not know keep their own."""
    usual = {name for names in HUB_SPLITS.values() for name in names}
    found = {name: rows for name, rows in loaded.items() if name not in usual}
    for split, names in HUB_SPLITS.items():
        name = next((name for name in names if name in loaded), None)
        if name:
            found[split] = loaded[name]
    return found


def column(rows: Dataset, name: str, role: str) -> list:
    """One column as a list; class numbers become class names. Raises UserError listing the columns there are."""
    if name not in rows.column_names:
        raise UserError(
            Problem(
                f"the data has no column {name!r}",
                path=f"data.columns.{role}",
                found=name,
                valid=tuple(rows.column_names),
            )
        )
    feature = rows.features[name]
    values = rows[name][:]
    if isinstance(feature, ClassLabel):
        return [_class_name(feature, value) for value in values]
    if isinstance(inner := getattr(feature, "feature", None), ClassLabel):  # a list of classes a row
        return [None if value is None else [_class_name(inner, one) for one in value] for value in values]
    return values


def _class_name(feature: ClassLabel, number: int | None) -> str | None:
    return None if number is None or number < 0 else feature.int2str(number)


def _cache() -> str:
    return str(cache_root() / "datasets")
