"""The report of the data check is cached, for the same data only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch import check
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.load import load

CHAT = """\
task: {type: instruction-tuning, chat_template: ./template.jinja}
model: {path: ./model}
data: {source: ./chats.jsonl}
tuning: full
train: {lr: 1.0e-3}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SFT_DIST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    for name in ("model/config.json", "model/tokenizer.json", "template.jinja", "chats.jsonl", "a.png"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "demo.yaml").write_text(CHAT)
    return tmp_path


@pytest.mark.parametrize("name", ["model/config.json", "model/tokenizer.json", "template.jinja", "chats.jsonl"])
def test_a_report_is_cached_by_the_state_of_model_template_and_data(place: Path, name: str) -> None:
    recipe = load(place / "demo.yaml")
    before = check.report_file(recipe)
    assert check.report_file(recipe) == before
    os.utime(place / name, ns=(1, 1))
    assert check.report_file(recipe) != before


def test_a_report_is_cached_by_the_version_of_the_code(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load(place / "demo.yaml")
    before = check.report_file(recipe)
    monkeypatch.setattr(check, "code_digest", lambda: "another version")
    assert check.report_file(recipe) != before


def count_checks(
    place: Path, monkeypatch: pytest.MonkeyPatch, findings: list[dict[str, Any]], code: int = 0
) -> list[int]:
    """Counts how often the check is started; its report has these findings, and one image."""
    calls: list[int] = []

    def fake_check(recipe: Any, options: Any) -> subprocess.CompletedProcess[str]:
        calls.append(1)
        file = check.report_file(recipe)
        file.parent.mkdir(parents=True, exist_ok=True)
        files = check.file_states([str(place / "a.png")])
        file.write_text(json.dumps({"findings": findings, "warnings": 0, "files": files}))
        return subprocess.CompletedProcess([], code, "")

    monkeypatch.setattr(check, "_check_in_subprocess", fake_check)
    return calls


def test_a_changed_image_of_a_table_is_checked_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, recipe = count_checks(place, monkeypatch, []), load(place / "demo.yaml")
    for _ in range(2):
        check._report_of(recipe)
    assert len(calls) == 1
    (place / "a.png").write_text("another")
    for _ in range(2):
        check._report_of(recipe)
    assert len(calls) == 2
    (place / "a.png").unlink()
    check._report_of(recipe)
    assert len(calls) == 3


def test_unreadable_data_is_checked_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_checks(place, monkeypatch, [{"kind": "unreadable-image"}], check.ERRORS)
    for _ in range(2):
        check._report_of(load(place / "demo.yaml"))
    assert len(calls) == 2


def program(place: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Replaces the program of the check."""
    (place / "sft_dist").mkdir()
    (place / "sft_dist" / "__init__.py").touch()
    (place / "sft_dist" / "check.py").write_text(code)
    monkeypatch.setattr(check, "environment", lambda: {**os.environ, "PYTHONPATH": str(place), "PYTHONSAFEPATH": "1"})


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("import os; os.kill(os.getpid(), 15)", "killed by SIGTERM"),
        ("import os; os.abort()", "killed by SIGABRT"),
        ("raise MemoryError", "crashed"),
        ("import sys; sys.exit(1)", "crashed"),
        ("import sys; sys.exit(0)", "crashed"),
        ("import sys; sys.exit(3)", "crashed"),
    ],
)
def test_a_check_that_did_not_finish_is_neither_clean_nor_submitted(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], code: str, cause: str
) -> None:
    program(place, monkeypatch, code)
    monkeypatch.setattr(check, "require_references", lambda runs, source: None)
    for as_json in (False, True):
        assert check.run_check(str(place / "demo.yaml"), [], place / "runs", as_json=as_json) == check.UNFINISHED
        output = capfd.readouterr()
        assert cause in output.err
        assert not as_json or cause in json.loads(output.out)["problems"][0]["message"]
    with pytest.raises(UserError, match=cause):
        check.check_before_submit([SimpleNamespace(run=run) for run in check.expand(check.read(place / "demo.yaml"))])


PARTIAL = """\
import json, pathlib, sys
finding = {"kind": "crashed-check", "severity": "error", "message": "`check texts` crashed", "hint": "", "rows": []}
report = json.dumps({"findings": [finding], "warnings": 0, "files": []})
pathlib.Path(sys.argv[sys.argv.index("--keep") + 1]).write_text(report)
print(report)
sys.exit(3)
"""


def test_a_check_of_which_a_part_crashed_is_reported_and_not_submitted(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    program(place, monkeypatch, PARTIAL)
    monkeypatch.setattr(check, "require_references", lambda runs, source: None)
    assert check.run_check(str(place / "demo.yaml"), [], place / "runs", as_json=True) == check.UNFINISHED
    assert json.loads(capfd.readouterr().out)["findings"][0]["kind"] == "crashed-check"
    runs: Any = [SimpleNamespace(run=run) for run in check.expand(check.read(place / "demo.yaml"))]
    for _ in range(2):  # the report is not taken from the cache
        with pytest.raises(UserError, match="check texts` crashed"):
            check.check_before_submit(runs)
        assert "checking the data" in capfd.readouterr().err
    assert check.check_before_submit(runs, ["crashed-check"]) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_check_that_is_ended_leaves_no_process_and_no_folder(place: Path, number: signal.Signals) -> None:
    (place / "tmp").mkdir()
    (place / "sft_dist").mkdir()
    (place / "sft_dist" / "__init__.py").touch()
    (place / "sft_dist" / "check.py").write_text(
        "import os, pathlib, subprocess, sys, tempfile, time\n"
        "tempfile.mkdtemp()\n"
        "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(place / 'ids')!r}).write_text(f'{{os.getpid()}} {{worker.pid}} ')\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os\n"
            "from launch import check\n"
            "from sft_dist.recipe.load import load\n"
            f"check.environment = lambda: {{**os.environ, 'PYTHONPATH': {str(place)!r}, 'PYTHONSAFEPATH': '1'}}\n"
            f"check._check_in_subprocess(load({str(place / 'demo.yaml')!r}), [])\n",
        ],
        env={**os.environ, "TMPDIR": str(place / "tmp")},
        stderr=subprocess.DEVNULL,
    )
    while not (place / "ids").is_file() or len((place / "ids").read_text().split()) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(number)
    parent.wait(60)
    for process in map(int, (place / "ids").read_text().split()):
        while is_alive(process):
            time.sleep(0.05)
    assert list((place / "tmp").iterdir()) == []


def is_alive(process: int) -> bool:
    """Whether a process runs; one that has ended and whose parent never asked for its exit code does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_earlier_report_is_read_without_a_check(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, recipe = count_checks(place, monkeypatch, []), load(place / "demo.yaml")
    assert check.cached_report(recipe) is None
    check._report_of(recipe)
    assert check.cached_report(recipe) == check._report_of(recipe)
    assert len(calls) == 1
    (place / "a.png").write_text("another")
    assert check.cached_report(recipe) is None
    assert check.cached_report(load(place / "demo.yaml", ["data.source=org/name"])) is None
    (place / "chats.jsonl").unlink()
    assert check.cached_report(recipe) is None
