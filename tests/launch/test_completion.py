"""What TAB completes: the names as functions, and the script in a real bash."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from launch.cli import cli
from launch.completion import COMPLETE_VARIABLE
from tests.launch.conftest import ROOT


def completed(*words: str) -> set[str]:
    *earlier, incomplete = words
    items = BashComplete(cli, {}, "sft-dist", COMPLETE_VARIABLE).get_completions(list(earlier), incomplete)
    return {item.value if item.type == "plain" else f"<{item.type}>" for item in items}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("0a1b2c3d4e", "0affffffff"):
        (tmp_path / "runs/hub" / name).mkdir(parents=True)
        (tmp_path / "runs/hub" / name / "recipe.json").write_text("{}")
    (tmp_path / "hub.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SFT_DIST_RUNS", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["sta"], {"status"}),
        (["run", "hub.y"], {"<file>"}),
        (["init", "token"], {"token-classification"}),
        (["resume", "--strategy", "z"], {"zero1", "zero2", "zero3"}),
        (["logs", "0a1"], {"0a1b2c3d4e"}),
        (["stop", "h"], {"hub", "hub.yaml"}),
        (["stop", "hub/0af"], {"hub/0affffffff"}),
        (["predict", "0af"], {"0affffffff"}),
        (["predict", "0af", "x"], {"<file>"}),
        (["eval", "./hub"], {"<file>"}),
        (["run", "hub.yaml", "train.lr"], {"train.lr="}),
        (["run", "hub.yaml", "train.lr=1", "tuning.rsl"], {"tuning.rslora="}),
        (["submit", "hub.yaml", "--cluster", "dev"], {"devcluster"}),
        (["check", "hub.yaml", "--allow", "lea"], {"leak"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_names_are_completed_by_their_kind(folder: Path, words: list[str], values: set[str]) -> None:
    assert completed(*words) == values


@pytest.mark.slow
def test_tab_completes_in_a_real_bash(folder: Path) -> None:
    program = folder / "bin/sft-dist"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "from launch.cli import main; main()" "$@"\n')
    program.chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PS1": "$ ",
        "TERM": "dumb",
    }
    own, shells = pty.openpty()
    bash = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"], stdin=shells, stdout=shells, stderr=shells, env=env, start_new_session=True,
    )  # fmt: skip
    os.close(shells)

    def type_until(text: str, pattern: str) -> None:
        os.write(own, text.encode())
        output, deadline = "", time.monotonic() + 60
        while not re.search(pattern, output):
            assert time.monotonic() < deadline, f"{text!r}: {output!r}"
            if select.select([own], [], [], 0.5)[0]:
                output += os.read(own, 4096).decode(errors="replace")

    try:
        type_until('eval "$(sft-dist completion bash)"; echo re""ady\n', "ready")
        erase = "\x15"  # Ctrl-U
        for text, pattern in (
            ("sft-dist sta\t", r"status "),
            ("sft-dist run hub.y\t", r"hub\.yaml "),
            ("sft-dist init token\t", r"token-classification "),
            ("sft-dist logs 0a1\t", r"0a1b2c3d4e "),
            ("sft-dist run hub.yaml train.see\t7X", r"train\.seed=7X"),  # no blank before the value
        ):
            type_until(text, pattern)
            os.write(own, erase.encode())
    finally:
        bash.kill()
        bash.wait()
        os.close(own)
