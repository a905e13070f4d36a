"""What a recipe points to: hub ids, local paths and globs, and files inside installed packages. Also what this program
ships itself. Packages are found without importing them, and no reference can step outside its package."""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sft_dist import __version__
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Data, Recipe, SplitSources
from sft_dist.recipe.yaml_lines import neighbours_of, similar_to

DATA_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?$", re.ASCII)
_PACKAGE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?$|[A-Za-z_][A-Za-z0-9_]*$")


@dataclass(frozen=True)
class Reference:
    """A reference as classified: a hub id, a path made absolute, or a package's name and the path inside it."""

    kind: Literal["local", "package", "hub"]
    text: str  # as the user wrote it
    path: Path = Path()  # local: absolute. package: relative to the package's folder
    package: str = ""


def classify(text: str, base: Path) -> Reference:
    """Which kind of reference this is, by its form alone; relative paths are relative to `base`.

    `./x`, `../x`, `/x`, `~/x`, globs, names with a data file's suffix and paths too deep for a hub id are local.
    """
    if text.startswith("package:"):
        name, _, inside = text[len("package:") :].partition("/")
        return Reference("package", text, Path(inside), name)
    name = text.rsplit("/", 1)[-1].lower()
    if _HUB_ID.match(text) and ".." not in text and not name.endswith(DATA_SUFFIXES):
        return Reference("hub", text)
    return Reference("local", text, Path(os.path.abspath(base / os.path.expanduser(text))))


def absolute(text: str, base: Path) -> str:
    """The reference with a local path made absolute. `dir/name` that exists beside the recipe is that, not a hub id."""
    found = classify(text, base)
    if found.kind == "hub" and text and (base / text).exists():
        return os.path.abspath(base / text)
    return str(found.path) if found.kind == "local" else text


def resolve(reference: Reference) -> Path | list[Path] | str:
    """A file or folder, the files of a glob, or a hub id as it is. Raises UserError."""
    if reference.kind == "hub":
        return reference.text
    try:
        if reference.kind == "package":
            return _in_package(reference)
        return _existing(reference.path, reference.text)
    except (OSError, ValueError) as error:
        raise UserError(Problem(f"cannot be read: {error}", found=reference.text)) from None


def model_source(text: str) -> str:
    """A model reference of a validated recipe as `from_pretrained` takes it. Raises UserError."""
    found = resolve(classify(text, Path.cwd()))
    if isinstance(found, list):
        raise UserError(Problem("a model is one folder, not a glob", found=text))
    return str(found)


def shipped(*parts: str) -> Path:
    """A file or folder that travels with this program: `shipped("recipes")`, in a wheel or in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "_shipped"
    return (inside if inside.is_dir() else package.parent).joinpath(*parts)


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
    if not problems and not recipe.model.allow_pickle:
        problems += _pickled(recipe.model.path)
    for path, text in sources_of(recipe.data):
        problems += _problems_of(path, text, is_model=False)
    return problems


def data_fingerprint(recipe: Recipe) -> str:
    """SHA-256 of all that decides which rows a run has: the data settings, the task, and each local file's size and
    time of change. Raises UserError when a file is missing."""
    settings = recipe.data.model_dump(mode="json", exclude={"max_length"})
    files: list[tuple[str, int, int]] = []
    for _, text in sources_of(recipe.data):
        found = resolve(classify(text, Path.cwd()))
        for path in _files_of(found):
            status = path.stat()
            files.append((str(path), status.st_size, status.st_mtime_ns))
    known = {"version": __version__, "data": settings, "task": recipe.task.model_dump(mode="json"), "files": files}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _problems_of(path: str, text: str, is_model: bool) -> list[Problem]:
    try:
        found = resolve(classify(text, Path.cwd()))
    except UserError as error:
        return [Problem(one.message, path, None, text, one.valid, one.hint) for one in error.problems]
    if isinstance(found, str):
        return []
    if is_model:
        if isinstance(found, list):
            return [Problem("a model is one folder, not a glob", path, found=text)]
        if not found.is_dir():
            return [Problem("a model is a folder, this is a file", path, found=text)]
        if path == "model.path" and not (found / "config.json").is_file():
            return [Problem("not a model folder: there is no config.json in it", path, found=text)]
        return []
    paths = found if isinstance(found, list) else [] if found.is_dir() else [found]
    odd = sorted({one.suffix.lower() for one in paths} - set(DATA_SUFFIXES))
    if odd:
        shown = ", ".join(suffix or "no suffix" for suffix in odd)
        return [Problem(f"no reader for this kind of file ({shown})", path, found=text, valid=DATA_SUFFIXES)]
    return []


def _pickled(text: str) -> list[Problem]:
    """A model folder whose weights, or whose adapter's, are there as a pickle alone."""
    found = resolve(classify(text, Path.cwd()))
    if not isinstance(found, Path):
        return []
    names = sorted(path.name for path in found.iterdir())
    for stem, safe in (("pytorch_model", "model"), ("adapter_model", "adapter_model")):
        pickles = [name for name in names if name.startswith(stem) and name.endswith((".bin", ".pt"))]
        if pickles and not any(name.startswith(safe) and name.endswith(".safetensors") for name in names):
            what = f"its weights are a pickle ({pickles[0]}), which can run code when it is read"
            hint = "save it as safetensors, or accept it, to be read with weights_only=True: model.allow_pickle: true"
            return [Problem(what, "model.path", found=text, hint=hint)]
    return []


def _existing(path: Path, text: str) -> Path | list[Path]:
    if path.exists():
        return path
    if glob.has_magic(text):
        files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
        if not files:
            raise UserError(Problem("no file matches", found=text, hint=neighbours_of(path)))
        return files
    raise UserError(Problem("no such file or folder", found=text, hint=neighbours_of(path)))


def _files_of(found: Path | list[Path] | str) -> list[Path]:
    if isinstance(found, str):
        return []
    if isinstance(found, list):
        return found
    if found.is_dir():
        return sorted(Path(folder) / name for folder, _, names in os.walk(found) for name in names)
    return [found]


# ── packages ────────────────────────────────────────────────────────────────────────────────────────────────────────
def _in_package(reference: Reference) -> Path | list[Path]:
    text, name = reference.text, reference.package
    inside = text[len("package:") + len(name) + 1 :]
    if not _PACKAGE_NAME.match(name):
        raise UserError(Problem("expected `package:NAME/path/inside`", found=text))
    parts = inside.rstrip("/").split("/") if inside else []
    if any(part in ("", ".", "..") for part in parts):
        raise UserError(Problem("the path must stay inside the package: no `..`, no leading or double `/`", found=text))
    roots = _package_folders(name)
    if not roots:
        raise UserError(Problem(f"the package {name} is not installed", found=text, hint=f"pip install {name}"))
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
        Problem(f"no such path in the package {name}", found=text, hint=_near_inside(roots[0], parts) or "")
    )


def _near_inside(root: Path, parts: list[str]) -> str:
    """The first step of the path that is not there, with what is there instead."""
    here = root
    for depth, part in enumerate(parts):
        if not (here / part).exists():
            names = (
                sorted(entry.name for entry in here.iterdir() if not entry.name.startswith("__"))
                if here.is_dir()
                else []
            )
            close = similar_to(part, names)
            shown = "/".join(parts[:depth]) or "its folder"
            return close or f"in {shown}: {', '.join(names[:12])}"
        here = here / part
    return ""


def _contained(path: Path, root: Path, text: str) -> Path:
    """`path` if it, and all below it, lies in `root` once symlinks are followed. Raises UserError."""
    home = root.resolve()
    below = [Path(folder) / name for folder, dirs, names in os.walk(path) for name in (*dirs, *names)]
    for one in (path, *(inner for inner in below if inner.is_symlink())):
        if not one.resolve().is_relative_to(home):
            raise UserError(Problem(f"{one} leaves the package through a symbolic link", found=text))
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
            return [Path(place) for place in spec.submodule_search_locations if os.path.isdir(place)]
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
