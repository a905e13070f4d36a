"""Hub ids, local paths and packages: told apart, found without importing, and kept inside."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.load import load
from sft_dist.recipe.references import Reference, absolute, check_references, classify, model_source, resolve, suffix_of
from tests.sft_dist.recipe.recipe_texts import GOOD, write

BASE = Path("/base")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package that must never be imported."""
    root = tmp_path / "site" / "toy_pack"
    (root / "data").mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    for name in ("a.csv", "b.csv"):
        (root / "data" / name).write_text("text,label\nx,y\n")
    (root.parent / "secret.csv").write_text("no")
    monkeypatch.syspath_prepend(str(root.parent))
    return root


@pytest.mark.parametrize(
    ("text", "kind", "path"),
    [
        ("imdb", "hub", None),
        ("org/name", "hub", None),
        ("org/name-1.5_b", "hub", None),
        ("./dir", "local", "/base/dir"),
        ("../dir", "local", "/dir"),
        ("/dir", "local", "/dir"),
        (".", "local", "/base"),
        ("reviews.csv", "local", "/base/reviews.csv"),
        ("data/reviews.JSONL", "local", "/base/data/reviews.JSONL"),
        ("data/*.csv", "local", "/base/data/*.csv"),
        ("a/b/c", "local", "/base/a/b/c"),
        ("my data", "local", "/base/my data"),
        ("org/..", "local", "/base"),
        ("package:x/y.csv", "package", "y.csv"),
        ("notes.txt", "local", "/base/notes.txt"),
        ("rows.csv.gz", "local", "/base/rows.csv.gz"),
        ("tags.iob2", "local", "/base/tags.iob2"),
        ("sample:x/y.csv", "sample", "x/y.csv"),
        ("s3://bucket/a.csv", "url", None),
        ("https://host/a.csv?x=1", "url", None),
        ("file:///data/a.csv", "url", None),
        ("memory://a.csv", "url", None),
        ("sqlite:///a.db#rows", "sql", None),
        ("postgresql+psycopg2://u:p@host/db#SELECT a FROM b", "sql", None),
    ],
)
def test_references_are_told_apart_by_their_form(text: str, kind: str, path: str | None) -> None:
    found = classify(text, BASE)
    assert found.kind == kind
    assert path is None or found.path == Path(path)


def test_hub_ids_are_left_as_they_are() -> None:
    assert resolve(classify("org/name", BASE)) == "org/name"


def test_a_local_glob_gives_its_files_in_order(package: Path) -> None:
    assert resolve(classify("*.csv", package / "data")) == [package / "data/a.csv", package / "data/b.csv"]


def test_a_file_with_brackets_in_its_name_is_not_a_glob(tmp_path: Path) -> None:
    (tmp_path / "x[1].csv").touch()
    assert resolve(classify("x[1].csv", tmp_path)) == tmp_path / "x[1].csv"


@pytest.mark.parametrize("name", ["toy_pack", "toy-pack", "Toy-Pack"])
def test_a_package_is_found_by_either_name_without_importing_it(name: str, package: Path) -> None:
    assert resolve(classify(f"package:{name}/data/a.csv", BASE)) == package / "data/a.csv"
    assert "toy_pack" not in sys.modules


def test_a_glob_inside_a_package(package: Path) -> None:
    assert resolve(classify("package:toy-pack/data/*.csv", BASE)) == [package / "data/a.csv", package / "data/b.csv"]


def test_a_distribution_whose_folder_has_another_name() -> None:
    found = resolve(classify("package:scikit-learn/datasets/data/iris.csv", BASE))
    assert isinstance(found, Path)
    assert found.is_file()
    assert "sklearn" in found.parts


@pytest.mark.parametrize(
    "inside", ["../secret.csv", "data/../../secret.csv", "/etc/passwd", "data//a.csv", "./data/a.csv", "data/.."]
)
def test_no_path_leads_out_of_a_package(inside: str, package: Path) -> None:
    with pytest.raises(UserError, match="must stay inside the package"):
        resolve(classify(f"package:toy_pack/{inside}", BASE))


@pytest.mark.parametrize("reference", ["link.csv", "data", "data/in.csv", "l*.csv"])
def test_no_symlink_leads_out_of_a_package(reference: str, package: Path) -> None:
    (package / "link.csv").symlink_to(package.parent / "secret.csv")
    (package / "data/in.csv").symlink_to("../../secret.csv")
    with pytest.raises(UserError, match="leaves the package through a symbolic link"):
        resolve(classify(f"package:toy_pack/{reference}", BASE))


def test_a_symlink_within_a_package_is_fine(package: Path) -> None:
    (package / "data/c.csv").symlink_to("a.csv")
    assert resolve(classify("package:toy_pack/data/c.csv", BASE)) == package / "data/c.csv"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("package:not-installed-here/x", "pip install not-installed-here"),
        ("package:toy_pack/data/aa.csv", "did you mean `a.csv`?"),
        ("package:toy_pack/dta/a.csv", "did you mean `data`?"),
        ("package:toy_pack/zzz", "in its folder: data"),
        ("package:", "expected `package:NAME/path/inside`"),
        ("package:a b/c", "expected `package:NAME/path/inside`"),
        ("package:../x/y", "expected `package:NAME/path/inside`"),
        ("package:__main__/x", "not installed"),
        ("package:toy_pack.data/a.csv", "not installed"),
        ("/nowhere/x.csv", "there is no folder /nowhere"),
        ("/nowhere/*.csv", "no file matches"),
        ("./a\0b", "no such file"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(text: str, words: str, package: Path) -> None:
    with pytest.raises(UserError) as caught:
        resolve(classify(text, BASE))
    assert words in caught.value.render()


# ── samples ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_sample_is_a_path_in_the_cache(samples: Path) -> None:
    assert resolve(classify("sample:trees/train.json", BASE)) == samples / "trees/train.json"
    assert resolve(classify("sample:trees", BASE)) == resolve(classify("sample:trees/", BASE)) == samples / "trees"
    assert resolve(classify("sample:trees/*.json", BASE)) == [samples / "trees/test.json", samples / "trees/train.json"]
    assert model_source("sample:bert") == str(samples / "bert")
    assert absolute("sample:trees", BASE) == "sample:trees"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sample:tree/train.json", "this sample has not been fetched"),
        ("sample:tree/train.json", "valid: bert, trees\n"),
        ("sample:tree/train.json", "run `make fetch-samples`"),
        ("sample:trees/tran.json", "did you mean `train.json`?"),
        ("sample:trees/*.csv", "no file matches"),
        ("sample:../secret.csv", "expected `sample:NAME/path`"),
        ("sample:", "expected `sample:NAME/path`"),
        ("sample:/etc/passwd", "expected `sample:NAME/path`"),
    ],
)
def test_a_sample_that_is_not_there_says_how_to_get_it(text: str, words: str, samples: Path) -> None:
    with pytest.raises(UserError) as caught:
        resolve(classify(text, BASE))
    assert words in caught.value.render()


def test_without_any_sample_the_way_to_them_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFT_DIST_CACHE", str(tmp_path / "none"))
    with pytest.raises(UserError, match="run `make fetch-samples`"):
        resolve(classify("sample:trees", BASE))


# ── URLs and databases ──────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("A.CSV", ".csv"),
        ("a.csv.gz", ".csv"),
        ("a.tar.gz", ".tar"),
        ("a.gz", ".gz"),
        ("a", ""),
        ("x/.b", ""),
        ("https://host/a.csv?b=c.d#e", ".csv"),
        ("s3://bucket/part-?.csv", ".csv"),
    ],
)
def test_the_suffix_that_counts(name: str, suffix: str) -> None:
    assert suffix_of(name) == suffix


def test_urls_stay_as_they_are_and_paths_of_databases_become_absolute() -> None:
    assert resolve(classify("s3://bucket/a.csv", BASE)) == "s3://bucket/a.csv"
    assert absolute("s3://bucket/a.csv", BASE) == "s3://bucket/a.csv"
    assert absolute("sqlite:///a.db#rows", BASE) == "sqlite:////base/a.db#rows"
    assert absolute("sqlite:////data/a.db#rows", BASE) == "sqlite:////data/a.db#rows"
    assert absolute("sqlite:///:memory:#rows", BASE) == "sqlite:///:memory:#rows"
    assert absolute("postgresql://host/db#rows", BASE) == "postgresql://host/db#rows"


def test_a_database_is_its_file_and_a_missing_one_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "a.db").touch()
    assert resolve(classify(f"sqlite:///{tmp_path}/a.db#rows", BASE)) == tmp_path / "a.db"
    with pytest.raises(UserError, match="did you mean `a.db`"):
        resolve(classify(f"sqlite:///{tmp_path}/b.db#rows", BASE))
    assert not (tmp_path / "b.db").exists()


@pytest.mark.parametrize("text", ["s3://bucket/model", "sqlite:///a.db#rows"])
def test_a_url_is_no_model(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.db").touch()
    with pytest.raises(UserError, match="a model is a folder or a hub id, not a URL"):
        model_source(text)


def test_a_url_is_checked_by_its_form_without_asking_the_network(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    sources = (
        "[s3://no-such/a.csv, s3://no-such/folder/, 'https://no-such.example/a.jsonl.gz?v=1', s3://no-such/a.xlsx]"
    )
    recipe = load(write(tmp_path, GOOD.replace("./train.csv", sources)))
    (problem,) = check_references(recipe)
    assert problem.path == "data.source.3"
    assert problem.message == "no reader for this kind of file (.xlsx)"
    assert "data.format" in problem.hint
    named = load(write(tmp_path, GOOD.replace("./train.csv", "{train: ./a.dat}\n  format: csv")))
    assert [one.message for one in check_references(named)] == ["no such file or folder"]
    (tmp_path / "a.dat").touch()
    assert check_references(named) == []


# ── the rest ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_missing_local_file_names_its_neighbour(package: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean `a.csv`"):
        resolve(Reference("local", "a.csw", package / "data/a.csw"))


def test_the_samples_of_the_quickstart_are_found() -> None:
    recipe = load("recipes/text-classification/quickstart.yaml")
    assert check_references(recipe) == []
    assert (Path(model_source(recipe.model.path)) / "config.json").is_file()


def test_every_reference_of_a_recipe_is_checked(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "notes.xlsx").touch()
    text = GOOD.replace("./train.csv", "{train: [no.csv, ./notes.xlsx], test: org/name}").replace(
        "path: ./model", "path: ./model\n  tokenizer: ./notes.xlsx"
    )
    found = {one.path: one.message for one in check_references(load(write(tmp_path, text)))}
    assert found == {
        "model.path": "not a model folder: there is no config.json in it",
        "model.tokenizer": "a model is a folder, and this is a file",
        "data.source.train.0": "no such file or folder",
        "data.source.train.1": "no reader for this kind of file (.xlsx)",
    }
