"""A warm Python is one to those who start it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_python")]


def start(program: str, **options: object) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", program], text=True, **{**pipes, **options})  # type: ignore[call-overload,no-any-return]


def test_streams_folder_environment_and_exit_code_are_its_own(tmp_path: Path) -> None:
    program = "import os, sys; print(sys.stdin.read(), os.getcwd(), os.environ['WORD']); sys.exit('wrong')"
    process = start(program, cwd=tmp_path, env={**os.environ, "WORD": "given"})
    assert process.communicate("read") == (f"read {tmp_path} given\n", "wrong\n")
    assert process.returncode == 1


def test_an_error_has_its_traceback() -> None:
    process = start("1 / 0")
    assert "ZeroDivisionError" in process.communicate()[1]
    assert process.returncode == 1


def test_the_path_decides_what_is_imported(tmp_path: Path) -> None:
    (tmp_path / "sft_dist").mkdir()
    (tmp_path / "sft_dist/__init__.py").write_text("print('a copy')")
    process = start("import sft_dist", env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd="/")
    assert process.communicate() == ("a copy\n", "")


def test_it_starts_further_programs_as_itself() -> None:
    process = start("import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'raise SystemExit(5)']))")
    assert process.wait() == 5


def test_signals_arrive() -> None:
    program = (
        "import signal; signal.signal(signal.SIGTERM, lambda *_: exit(3)); print('ready', flush=True); signal.pause()"
    )
    process = start(program)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 3


def test_a_killed_program_ends() -> None:
    process = start("import os, signal; print(os.getpid(), flush=True); signal.pause()")
    assert process.stdout is not None
    program = int(process.stdout.readline())
    process.kill()
    process.wait()
    while Path(f"/proc/{program}").exists():
        time.sleep(0.01)
