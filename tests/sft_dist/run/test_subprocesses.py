"""What helper processes import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sft_dist.run.subprocesses import environment, module_command


@pytest.mark.parametrize("module", ["datasets", "torch", "json", "runpy", "sft_dist", "click"])
@pytest.mark.parametrize("has_safe_path", [True, False], ids=["", "as in 3.10"])
def test_a_module_in_the_working_directory_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, has_safe_path: bool
) -> None:
    (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", os.environ.get("PYTHONPATH", ""), ""]))
    env = environment()
    if not has_safe_path:
        del env["PYTHONSAFEPATH"]
    (tmp_path / "child").mkdir()
    (tmp_path / "child" / "program.py").write_text(
        f"import importlib.util, sys; importlib.util.find_spec({module!r}); import json, sft_dist; print(sys.argv[1:])"
    )
    env["PYTHONPATH"] += os.pathsep + str(tmp_path / "child")
    command = module_command("program", ["a", "b c"])
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "['a', 'b c']\n"
    assert not (tmp_path / "ran").exists()


def test_the_command_runs_the_interpreter_that_is_named() -> None:
    assert module_command("a.b", [], "python3")[:2] == ["python3", "-c"]
    assert module_command("a.b")[0] == sys.executable
