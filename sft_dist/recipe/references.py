"""What a recipe points to: hub ids, local paths and globs, files inside installed packages, samples, URLs and databases. Also
what this program ships itself. Packages are resolved without importing them, and no reference can step outside its package."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sft_dist.recipe import remote
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import cache_root, irregular, read_json
from sft_dist.recipe.lm_eval import is_task_file
from sft_dist.recipe.model_damage import HINT, config_problems, weight_file_problems
from sft_dist.recipe.model_files import folder_problems
from sft_dist.recipe.schema import Data, Recipe, SplitSources
from sft_dist.recipe.suggest import neighbours_of, similar_to

# What a file holds, by the end of its name. `.json` may also be COCO annotations: their content tells.
SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".iob2": "conll",
}
DATA_SUFFIXES = tuple(SUFFIXES)
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")  # may follow the suffix of a text format
_SQL = ("sqlite", "postgresql", "mysql", "mariadb", "oracle", "mssql")  # the dialects SQLAlchemy brings along
SCHEME = re.compile(r"([a-z][a-z0-9]*)(?:\+[a-z0-9]+)?://", re.IGNORECASE)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?$", re.ASCII)
_PACKAGE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?$|[A-Za-z_][A-Za-z0-9_]*$")


@dataclass(frozen=True)
class Reference:
    """A reference as classified: a hub id, a URL, a path made absolute, or a package's name and the path inside it."""

    kind: Literal["local", "package", "sample", "hub", "url", "sql"]
    text: str  # as the user wrote it
    path: Path = Path()  # local: absolute. package, sample: relative to the package's folder, to that of the samples
    package: str = ""


def classify(text: str, base: Path) -> Reference:
    """Which kind of reference this is, by its form alone; relative paths are relative to `base`.

    `./x`, `../x`, `/x`, `~/x`, globs, names with a data file's suffix and paths too deep for a hub id are local. What has a
    scheme is a database where SQLAlchemy knows it (`sqlite:///a.db#table`), else a URL for fsspec (`s3://bucket/a.csv`).
    """
    if text.startswith("package:"):
        name, _, inside = text[len("package:") :].partition("/")
        return Reference("package", text, Path(inside), name)
    if text.startswith("sample:"):
        return Reference("sample", text, Path(text[len("sample:") :]))
    if scheme := SCHEME.match(text):
        return Reference("sql" if scheme[1].lower() in _SQL else "url", text)
    if _HUB_ID.match(text) and ".." not in text and suffix_of(text) not in SUFFIXES:
        return Reference("hub", text)
    return Reference("local", text, Path(os.path.abspath(base / os.path.expanduser(text))))


def is_hub(text: str) -> bool:
    """Whether this is a hub id, in a validated recipe, whose local paths are absolute."""
    return classify(text, Path("/")).kind == "hub"


def absolute(text: str, base: Path) -> str:
    """The reference with a local path made absolute. `dir/name` that exists beside the recipe is that, not a hub id."""
    reference = classify(text, base)
    if reference.kind == "hub" and text and (base / text).exists():
        return os.path.abspath(base / text)
    if reference.kind == "sql" and (file := sqlite_file(text)) and not os.path.isabs(file):
        return text.replace(f":///{file}", f":///{os.path.abspath(base / file)}", 1)
    return str(reference.path) if reference.kind == "local" else text


def suffix_of(name: str | Path) -> str:
    """The suffix that says what a file holds, in small letters: `.csv` of `A.CSV`, `a.csv.gz` and `https://b/a.csv?c=d`."""
    if str(name).startswith(("https://", "http://")):  # elsewhere `?` is part of a name or of a pattern
        name = re.split("[?#]", str(name), maxsplit=1)[0]
    stem, suffix = os.path.splitext(str(name).lower())
    return (os.path.splitext(stem)[1] if suffix in COMPRESSIONS else "") or suffix


def sqlite_file(text: str) -> str:
    """The file of an SQLite database's URL (`sqlite:///FILE#TABLE`); empty for other databases and for one in memory."""
    address = text.partition("#")[0]
    scheme, _, file = address.partition(":///")
    file = file.partition("?")[0]
    return file if scheme.partition("+")[0].lower() == "sqlite" and file not in ("", ":memory:") else ""


def resolve(reference: Reference) -> Path | list[Path] | str:
    """A file or folder, the files of a glob, or a hub id or URL as it is. Raises UserError."""
    if reference.kind == "url":
        remote.require_known_protocol(reference.text)
        _require_file(reference.text.removeprefix("file://"), reference.text)
    if reference.kind in ("hub", "url"):
        return reference.text
    try:
        if reference.kind == "package":
            return _in_package(reference)
        if reference.kind == "sample":
            return _in_samples(reference)
        if reference.kind == "sql":
            return _database(reference)
        return _existing(reference.path, reference.text)
    except (OSError, ValueError) as error:
        raise UserError(Problem(f"cannot be read: {error}", value=reference.text)) from None


def model_source(text: str) -> str:
    """A model reference of a validated recipe as `from_pretrained` takes it. Raises UserError."""
    reference = classify(text, Path.cwd())
    resolved = resolve(reference)
    if reason := _no_model(reference, resolved):
        raise UserError(Problem(reason, value=text))
    if isinstance(resolved, Path) and (problems := folder_problems(resolved)):
        raise UserError(problems)
    return str(resolved)


def sources_of(data: Data) -> Iterator[tuple[str, str]]:
    """(key path, reference) of every data source."""
    by_path: dict[str, str | list[str] | None] = {"data.source": None}
    if isinstance(data.source, SplitSources):
        by_path = {f"data.source.{split}": source for split, source in dict(data.source).items()}
    else:
        by_path["data.source"] = data.source
    for path, source in by_path.items():
        if isinstance(source, str):
            yield path, source
        elif source is not None:
            yield from ((f"{path}.{index}", text) for index, text in enumerate(source))


def check_references(recipe: Recipe) -> list[Problem]:
    """Does everything the recipe points to exist? Hub ids are not looked at: that needs the network."""
    problems = []
    for path, text in (("model.path", recipe.model.path), ("model.tokenizer", recipe.model.tokenizer)):
        if text is not None:
            problems += _problems_of(path, text, is_model=True)
    if not problems:
        problems += weight_problems(resolve(classify(recipe.model.path, Path.cwd())), recipe.model.allow_pickle)
    for option, file in recipe.task.files().items():
        if not Path(file).is_file():
            problems.append(Problem("no such file", f"task.{option}", value=file))
    for path, text in sources_of(recipe.data):
        problems += _problems_of(path, text, is_model=False, format=recipe.data.format)
    return [*problems, *_missing_task_files(recipe)]


def _missing_task_files(recipe: Recipe) -> Iterator[Problem]:
    settings = recipe.evaluate.lm_eval
    if settings is None:
        return
    for index, text in enumerate(settings.tasks):
        if is_task_file(text) and not Path(text).is_file():
            path = f"evaluate.lm_eval.tasks.{index}"
            yield Problem("no such file", path, value=text, hint=neighbours_of(Path(text)))
    if settings.include_path is not None and not Path(settings.include_path).is_dir():
        hint = neighbours_of(Path(settings.include_path))
        yield Problem("no such folder", "evaluate.lm_eval.include_path", value=settings.include_path, hint=hint)


def _problems_of(path: str, text: str, is_model: bool, format: str = "auto") -> list[Problem]:
    reference = classify(text, Path.cwd())
    try:
        resolved = resolve(reference)
    except UserError as error:
        return [
            Problem(problem.message, path, value=text, valid=problem.valid, hint=problem.hint)
            for problem in error.problems
        ]
    if is_model:
        if reason := _no_model(reference, resolved):
            return [Problem(reason, path, value=text)]
        if not isinstance(resolved, Path):
            return []
        if path == "model.path" and not (resolved / "config.json").is_file():
            return [Problem("not a model folder: there is no config.json in it", path, value=text)]
        return folder_problems(resolved, path) or (config_problems(resolved) if path == "model.path" else [])
    if reference.kind in ("hub", "sql") or format != "auto":
        return []
    unknown_suffixes = odd_suffixes(
        [text] if isinstance(resolved, str) else resolved if isinstance(resolved, list) else [resolved]
    )
    if unknown_suffixes:
        suffixes = ", ".join(suffix or "no suffix" for suffix in unknown_suffixes)
        hint = "say what it holds with data.format" + (
            "; a folder's URL ends with /" if reference.kind == "url" else ""
        )
        return [
            Problem(f"no reader for this kind of file ({suffixes})", path, value=text, valid=DATA_SUFFIXES, hint=hint)
        ]
    return []


def odd_suffixes(files: Sequence[str | Path]) -> list[str]:
    """The suffixes among these files, or URLs of files, that say nothing known. Folders are read by their content."""
    names = [str(file) for file in files if not (os.path.isdir(file) or str(file).endswith("/"))]
    return sorted({suffix_of(name) for name in names} - set(SUFFIXES))


def _no_model(reference: Reference, resolved: Path | list[Path] | str) -> str:
    """Why this is not a model; empty when it may be one."""
    if reference.kind in ("url", "sql"):
        return "a model is a folder or a hub id, not a URL"
    if isinstance(resolved, list):
        return "a model is one folder, not a glob"
    return "a model is a folder, and this is a file" if isinstance(resolved, Path) and not resolved.is_dir() else ""


def weight_problems(resolved: Path | list[Path] | str, allow_pickle: bool) -> list[Problem]:
    """Returns why the weights in a model folder may not or cannot be read: files outside it, damaged ones, and pickles unless
    they are allowed."""
    if not isinstance(resolved, Path):
        return []
    problems = index_problems(resolved, allow_pickle) or weight_file_problems(resolved)
    return problems if problems or allow_pickle else _pickled(resolved)


def index_problems(folder: Path, allow_pickle: bool) -> list[Problem]:
    """What is wrong with the files that an index of the weights names."""
    for index in sorted(folder.glob("*.index.json")):
        content = read_json(index)
        files = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            return [Problem(f"{index.name} is not an index of weights", "model.path", value=str(folder))]
        for name in sorted(set(files.values())):
            if name != os.path.basename(name) or name in ("", ".", ".."):
                return [Problem(f"{index.name} names a file outside the folder", "model.path", value=name)]
            if not allow_pickle and ".safetensors." in index.name and not name.endswith(".safetensors"):
                message = f"{index.name} names a file that is not safetensors, which can run code when it is read"
                hint = (
                    "save it as safetensors, or accept it, to be read with weights_only=True: model.allow_pickle: true"
                )
                return [Problem(message, "model.path", value=name, hint=hint)]
            if not (folder / name).exists():
                message = f"{index.name} names {name}, which is not in the folder"
                return [Problem(message, "model.path", value=str(folder), hint=HINT)]
    return []


def _pickled(resolved: Path) -> list[Problem]:
    """A model folder whose weights, or whose adapter's, are there as a pickle alone."""
    names = sorted(path.name for path in resolved.iterdir())
    for stem, safe in (("pytorch_model", "model"), ("adapter_model", "adapter_model")):
        pickles = [name for name in names if name.startswith(stem) and name.endswith((".bin", ".pt"))]
        if pickles and not any(name.startswith(safe) and name.endswith(".safetensors") for name in names):
            message = f"its weights are a pickle ({pickles[0]}), which can run code when it is read"
            hint = "save it as safetensors, or accept it, to be read with weights_only=True: model.allow_pickle: true"
            return [Problem(message, "model.path", value=str(resolved), hint=hint)]
    return []


def _require_file(path: str | Path, text: str) -> None:
    """Raises UserError for pipes, sockets and devices."""
    if kind := irregular(path):
        raise UserError(
            Problem(f"is {kind}, not a file", value=text, hint="write its content to a file, and name that")
        )


def _existing(path: Path, text: str) -> Path | list[Path]:
    _require_file(path, text)
    if path.exists():
        return path
    if glob.has_magic(text):
        files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
        if not files:
            raise UserError(Problem("no file matches", value=text, hint=neighbours_of(path)))
        return files
    raise UserError(Problem("no such file or folder", value=text, hint=neighbours_of(path)))


def _database(reference: Reference) -> Path | str:
    """The file of an SQLite database, which SQLite would make when it is missing; other databases as they are."""
    file = sqlite_file(reference.text)
    if not file:
        return reference.text
    if not os.path.isfile(file):
        raise UserError(Problem("no such database file", value=reference.text, hint=neighbours_of(Path(file))))
    return Path(file)


def _in_samples(reference: Reference) -> Path | list[Path]:
    parts = reference.text[len("sample:") :].rstrip("/").split("/")
    if any(name in ("", ".", "..") for name in parts):
        raise UserError(Problem("expected `sample:NAME/path`: no `..`, no leading or double `/`", value=reference.text))
    home = cache_root() / "samples"
    if not (home / parts[0]).exists():
        sample_names = (
            sorted(sample.name for sample in home.iterdir() if sample.name[0] != ".") if home.is_dir() else []
        )
        raise UserError(
            Problem(
                "this sample has not been fetched", "", value=reference.text, valid=tuple(sample_names), hint=_FETCH
            )
        )
    path = home.joinpath(*parts)
    if not path.exists() and not glob.has_magic(reference.text):
        hint = _near_inside(home, parts) or _FETCH
        raise UserError(Problem("no such path in the sample", value=reference.text, hint=hint))
    return _existing(path, reference.text)


_FETCH = "run `make fetch-samples`"


# ── packages ────────────────────────────────────────────────────────────────────────────────────────────────────────
def _in_package(reference: Reference) -> Path | list[Path]:
    text, name = reference.text, reference.package
    inside = text[len("package:") + len(name) + 1 :]
    if not _PACKAGE_NAME.match(name):
        raise UserError(Problem("expected `package:NAME/path/inside`", value=text))
    parts = inside.rstrip("/").split("/") if inside else []
    if any(name in ("", ".", "..") for name in parts):
        raise UserError(Problem("the path must stay inside the package: no `..`, no leading or double `/`", value=text))
    roots = _package_folders(name)
    if not roots:
        raise UserError(Problem(f"the package {name} is not installed", value=text, hint=f"pip install {name}"))
    for root in roots:
        path = root.joinpath(*parts)
        if path.exists() or path.is_symlink():
            return _contained(path, root, text)
        if glob.has_magic(inside):
            files = sorted(match for match in root.glob("/".join(parts)) if match.is_file())
            if files:
                for file in files:
                    _contained(file, root, text)
                return files
    raise UserError(
        Problem(f"no such path in the package {name}", value=text, hint=_near_inside(roots[0], parts) or "")
    )


def _near_inside(root: Path, parts: list[str]) -> str:
    """The first step of the path that is not there, with what is there instead."""
    folder = root
    for depth, name in enumerate(parts):
        if not (folder / name).exists():
            names = (
                sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("__"))
                if folder.is_dir()
                else []
            )
            close = similar_to(name, names)
            parent = "/".join(parts[:depth]) or "its folder"
            return close or f"in {parent}: {', '.join(names[:12])}"
        folder = folder / name
    return ""


def _contained(path: Path, root: Path, text: str) -> Path:
    """`path` if it, and all below it, lies in `root` once symlinks are followed. Raises UserError."""
    home = root.resolve()
    below = [Path(folder) / name for folder, dirs, names in os.walk(path) for name in (*dirs, *names)]
    for member in (path, *(inner for inner in below if inner.is_symlink())):
        if not member.resolve().is_relative_to(home):
            raise UserError(Problem(f"{member} leaves the package through a symbolic link", value=text))
    return path


def _package_folders(name: str) -> list[Path]:
    """Folders of an installed package, by import name or distribution name; nothing of it is run."""
    for candidate in dict.fromkeys((name, re.sub(r"[-.]+", "_", name), re.sub(r"[-_.]+", "_", name).lower())):
        if not candidate.isidentifier():
            continue
        try:
            spec = importlib.util.find_spec(candidate)  # a name without dots: finding it imports nothing
        except (ImportError, ValueError, AttributeError):
            continue
        if spec is not None and spec.submodule_search_locations:
            return [Path(location) for location in spec.submodule_search_locations if os.path.isdir(location)]
    return _distribution_folders(name)


def _distribution_folders(name: str) -> list[Path]:
    """For distributions whose folder has another name than they have (`scikit-learn` holds `sklearn`)."""
    from importlib import metadata  # slow to import, seldom needed

    try:
        distribution = metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        return []
    tops = {file.parts[0] for file in distribution.files or () if len(file.parts) > 1}
    names = sorted(top for top in tops if top.isidentifier() and top != "__pycache__")
    folders = [Path(str(distribution.locate_file(top))) for top in names]
    return [folder for folder in folders if folder.is_dir()]
