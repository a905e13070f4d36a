"""What a cluster file names and the submitting machine lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.slurm.software import load_modules, missing_software, warn_of_missing_software
from tests.launch.slurm.conftest import make_cluster


def test_a_missing_environment_or_image_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/activate").touch()
    assert missing_software(make_cluster(venv=str(tmp_path))) == []
    (line,) = missing_software(make_cluster(venv="/not/there"))
    assert line == "venv of cluster here: /not/there/bin/activate is not on this machine"
    (line,) = missing_software(make_cluster(conda="/not/there"))
    assert line.startswith("conda of cluster here: /not/there/conda-meta")
    (line,) = missing_software(make_cluster(container={"runtime": "apptainer", "image": "/not/there.sif"}))
    assert line.startswith("container.image of cluster here: /not/there.sif")
    assert missing_software(make_cluster(container={"runtime": "apptainer", "image": "docker://x"})) == []


@pytest.mark.parametrize(
    ("definition", "reason"),
    [
        ("module() { [[ $2 == cuda/12 ]] || { echo \"unable to locate '$2'\" >&2; return 1; }; }", "unable to locate 'nosuch'"),
        ("module() { [[ $2 == cuda/12 ]] || echo \"ERROR: no '$2'\" >&2; }", "ERROR: no 'nosuch'"),
        ("unset -f module", "there is no command `module`"),
    ],
    ids=["lmod", "old", "none"],
)  # fmt: skip
def test_modules_are_loaded_as_the_job_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, definition: str, reason: str
) -> None:
    (tmp_path / ".bash_profile").write_text(definition)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_modules(["nosuch"]) == reason
    if "unset" not in definition:
        assert load_modules(["cuda/12"]) == ""
    assert missing_software(make_cluster(modules=["nosuch"])) == [f"modules of cluster here: {reason} on this machine"]


def test_the_warning_is_printed_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert warn_of_missing_software(make_cluster(venv="/not/there"))
    assert "warning: venv of cluster here: /not/there/bin/activate is not on this machine; " in capsys.readouterr().err
    assert not warn_of_missing_software(make_cluster())
    assert capsys.readouterr().err == ""
