"""What helper processes import, and when they end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.subprocesses import environment


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 always searches the working directory")
@pytest.mark.parametrize("module", ["datasets", "torch", "json", "sft_dist", "click"])
def test_a_module_in_the_working_directory_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", os.environ.get("PYTHONPATH", ""), ""]))
    command = [sys.executable, "-m", "launch.hub_weights", "--help"]
    code = f"import importlib.util; importlib.util.find_spec({module!r}); import {module}"
    for words in ([sys.executable, "-c", code] if module in ("json", "click", "sft_dist") else command, command):
        subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, check=False, timeout=120)
    assert not (tmp_path / "ran").exists()
