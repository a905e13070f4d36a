"""The keys of caches: they change with the rows and with the code that makes them, and only with those."""

from __future__ import annotations

import ast
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sft_dist.recipe import fingerprint
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.fingerprint import PACKAGE, ROW_CODE, code_digest, data_fingerprint
from sft_dist.recipe.load import load
from tests.sft_dist.recipe.recipe_texts import GOOD, write

# Modules that `data` and `tasks` import, and that cannot change a cached row or target.
NOT_DIGESTED = {
    "": "the version; it is in the fingerprint itself",
    "losses/*": "computed from targets in training, but for losses/targets.py",
    "metrics/*": "computed from predictions, but for metrics/transcripts.py",
    "tuning/*": "changes models and how they are called, never what they read",
    "run/*": "locks, names of files and kinds of failures",
    "recipe/__init__.py": "empty",
    "recipe/entry_points.py": "finds tasks of other packages, whose code is in the fingerprint itself",
    "recipe/masking.py": "hides passwords in messages",
    "recipe/model_damage.py": "refuses damaged files of models",
    "recipe/model_folder.py": "refuses models and adapters, and says how long texts may be",
    "recipe/model_files.py": "refuses models, and changes no row",
    "recipe/metrics.py": "scores of predictions",
    "recipe/augment.py": "settings of random changes, made when a batch is made",
    "recipe/errors.py": "what a message looks like",
    "recipe/files.py": "writes files whole, and says where caches are",
    "recipe/fingerprint.py": "makes the key",
    "recipe/text.py": "how lists and tables read in messages",
    "recipe/lm_eval.py": "general tasks, on which models are scored",
    "recipe/machine.py": "whether packages and GPUs are there",
    "recipe/optimizers.py": "names of optimizers",
    "recipe/remote.py": "the state of remote data; it is in the fingerprint itself",
    "recipe/section.py": "how settings are read; what was read is in the fingerprint itself",
    "recipe/strategies.py": "how ranks share the work",
    "recipe/suggest.py": "hints in messages",
    "recipe/tracking.py": "which trackers there are",
    "recipe/tied_embeddings.py": "which layers an export cannot hold",
    "recipe/tunings.py": "kinds of tuning, and how each is exported",
    "recipe/units.py": "times and amounts of memory; rows have neither",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of sft_dist that fingerprints are made of, to be changed."""
    copy = tmp_path / "sft_dist"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "PACKAGE", copy)
    code_digest.cache_clear()
    yield copy
    code_digest.cache_clear()


def append(file: Path) -> None:
    with file.open("a") as stream:
        stream.write("# another version\n")
    code_digest.cache_clear()


# ── code ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_code_digest_sees_content_and_names(package: Path) -> None:
    original = code_digest()
    assert original == code_digest(package=PACKAGE)
    (package / "losses/tokens.py").rename(package / "loss.py")
    code_digest.cache_clear()
    renamed = code_digest()
    append(package / "loss.py")
    assert len({original, renamed, code_digest()}) == 3


@pytest.mark.parametrize(
    "module",
    [
        "data/clean.py",
        "tasks/base.py",
        "recipe/tasks/base.py",
        "recipe/references.py",
        "losses/targets.py",
        "metrics/transcripts.py",
    ],
)
def test_the_fingerprint_changes_with_the_code_that_prepares_rows(module: str, package: Path, tmp_path: Path) -> None:
    """Also with what that code imports: which letters a transcript has, which columns a task needs."""
    (tmp_path / "train.csv").write_text("text,label\n")
    recipe = load(write(tmp_path))
    original = data_fingerprint(recipe)
    append(package / module)
    assert data_fingerprint(recipe) != original


@pytest.mark.parametrize(
    "module",
    [
        "training/loop.py",
        "run/hang_watcher.py",
        "recipe/suggest.py",
        "recipe/explain.py",
        "losses/tokens.py",
        "metrics/audio.py",
    ],
)
def test_the_fingerprint_does_not_change_with_other_code(module: str, package: Path, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\n")
    recipe = load(write(tmp_path))
    original = data_fingerprint(recipe)
    append(package / module)
    assert data_fingerprint(recipe) == original


def test_all_that_data_and_tasks_import_is_digested_or_named_here() -> None:
    unnamed = [file for file in imported_by("data", "tasks") if not is_covered(file, ROW_CODE)]
    assert [file for file in unnamed if not is_covered(file, NOT_DIGESTED)] == []
    assert [name for name in NOT_DIGESTED if not any(is_covered(file, [name]) for file in unnamed)] == [], (
        "not imported"
    )


def is_covered(file: str, names: object) -> bool:
    folder = file.rpartition("/")[0]
    module = file.removesuffix("__init__.py").rstrip("/")
    return any(name in (file, module, f"{folder}/*") or (name and file.startswith(f"{name}/")) for name in names)


def imported_by(*folders: str) -> list[str]:
    """Files of sft_dist, those of the folders included, that importing and calling the modules of the folders can load."""
    waiting = [file for folder in folders for file in sorted((PACKAGE / folder).rglob("*.py"))]
    files: set[Path] = set()
    while waiting:
        if (file := waiting.pop()) not in files:
            files.add(file)
            waiting += imports_of(file)
    return sorted(file.relative_to(PACKAGE).as_posix() for file in files)


def imports_of(file: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.partition(".")[0] == "sft_dist":
                path = PACKAGE.joinpath(*name.split(".")[1:])
                yield from (found for found in (path.with_suffix(".py"), path / "__init__.py") if found.is_file())


# ── data ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_fingerprint_knows_databases_samples_and_urls(tmp_path: Path, samples: Path) -> None:
    for source, file in (
        (f"sqlite:///{tmp_path}/a.db#rows", tmp_path / "a.db"),
        (f"sqlite:///{tmp_path}/a.db#rows", tmp_path / "a.db-wal"),
        ("sample:trees/train.json", samples / "trees/train.json"),
        (f"file://{tmp_path}/a.csv", tmp_path / "a.csv"),
    ):
        (tmp_path / "a.db").touch()
        file.touch()
        recipe = load(write(tmp_path, GOOD.replace("./train.csv", f"'{source}'")))
        first = data_fingerprint(recipe)
        assert data_fingerprint(recipe) == first
        file.write_text("more")
        assert data_fingerprint(recipe) != first, source


def test_the_fingerprint_changes_with_the_rows_and_only_with_them(tmp_path: Path) -> None:
    data = tmp_path / "train.csv"
    data.write_text("text,label\n")
    file = write(tmp_path)
    first = data_fingerprint(load(file))
    assert data_fingerprint(load(file, ["train.lr=3", "tuning=full", "data.max_length=9"])) == first
    assert data_fingerprint(load(file, ["data.limit=3"])) != first
    assert data_fingerprint(load(file, ["data.split.seed=3"])) != first
    assert data_fingerprint(load(file, ["task.problem=multi-label"])) != first
    os.utime(data, ns=(1, 1))
    touched = data_fingerprint(load(file))
    assert touched != first
    data.write_text("text,label\nx,y\n")
    os.utime(data, ns=(1, 1))
    assert data_fingerprint(load(file)) not in (first, touched)


def test_the_fingerprint_of_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        data_fingerprint(load(write(tmp_path)))
