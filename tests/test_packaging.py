"""What is installed from a wheel: the programs, the shipped YAML, and nothing of the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    # Isolated, as an installer does it: what the build needs must stand in pyproject.toml.
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", target, ROOT], check=True, capture_output=True
    )
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it. Third-party packages are borrowed from this one: they take minutes."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True, cwd=folder)
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", query], check=True, capture_output=True, text=True).stdout.strip()
    # A path in a .pth file is added as it is: the borrowed folder's own .pth files (our editable install) are not read.
    Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    program = str(folder / "venv" / "bin" / command[0])
    return subprocess.run([program, *command[1:]], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_wheel_holds_both_packages_and_every_shipped_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("recipes", "slurm"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"sft_dist/_shipped/{path.relative_to(ROOT)}" in names
    assert {"launch/cli.py", "sft_dist/train.py", "sft_dist/recipe/schema.py"} <= names
    for folder in ("launch", "sft_dist"):
        files = {path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        assert {str(path.relative_to(ROOT)) for path in files} <= names  # templates, pages, scripts and styles, too
    assert any(name.endswith("licenses/launch/report/vendor/uPlot.LICENSE") for name in names)
    assert not [name for name in names if name.startswith("tests/")]


def test_installed_elsewhere_it_plans_a_shipped_recipe(elsewhere):
    where = run(elsewhere, "python", "-c", "import launch, sft_dist; print(launch.__file__, sft_dist.__file__)")
    assert all(str(elsewhere) in path for path in where.stdout.split()), where.stdout
    planned = run(elsewhere, "sft-dist", "plan", "recipes/text-classification/quickstart.yaml")
    assert planned.returncode == 0, planned.stderr
    assert "1 node x 2 processes x 16 micro-batch x 1 accumulation = 32" in planned.stdout
    assert str(elsewhere / "runs" / "quickstart") in planned.stdout


def test_both_names_are_the_same_program(elsewhere):
    assert run(elsewhere, "sft-dist", "--help").stdout == run(elsewhere, "python", "-m", "launch", "--help").stdout
