"""A run folder of 0.1.0, stopped at step 4 of 6, still resumes, evaluates and exports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from samples.packages import EXTRACTION

ROOT = Path(__file__).resolve().parents[2]
ARCHIVE = ROOT / "tests/fixtures/run_folder_0.1.tar.xz"
RUN = "old/3c80dc094e"
TOLERANCE = 1e-6  # bit-identical on the machine that made the archive; processors differ

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_python")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, **EXTRACTION)
    folder = tmp_path / "runs" / RUN
    for path in (folder / "plan.json", folder / "run.sh"):
        text = path.read_text().replace("@PYTHON@", sys.executable).replace("@RUNS@", str(tmp_path / "runs"))
        path.write_text(text)
    return folder


def launch(*arguments: str | Path) -> None:
    call([sys.executable, "-m", "launch", *map(str, arguments)], {})


def call(command: list[str], extra: dict[str, str]) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **extra}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def assert_as_expected(folder: Path) -> None:
    expected = load_file(folder.parents[2] / "expected/adapter_model.safetensors")
    weights = load_file(folder / "checkpoints/step-00000006/model/adapter_model.safetensors")
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=TOLERANCE)
    assert final_loss(folder / "metrics.jsonl") == pytest.approx(
        final_loss(folder.parents[2] / "expected/metrics.jsonl"), abs=TOLERANCE
    )


def final_loss(metrics: Path) -> float:
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train" and line["step"] == 6][-1]


def test_it_resumes_with_its_sealed_source(folder):
    launch("resume", folder)
    assert_as_expected(folder)


def test_it_resumes_evaluates_and_exports_with_this_version(folder, tmp_path):
    shutil.rmtree(folder / "source")
    plan = json.loads((folder / "plan.json").read_text())
    call(plan["argv"], {**plan["env"], "PYTHONPATH": str(ROOT)})
    assert_as_expected(folder)
    launch("eval", folder)
    board = json.loads((folder / "leaderboard.json").read_text())
    assert {row["step"] for row in board["rows"]} == {4, 6}
    assert board["winner"]["run"] == folder.name
    launch("export", folder, "--to", tmp_path / "model")
    assert (tmp_path / "model/sft_dist.json").is_file()
