"""Following a run's output from one attempt to the next."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from launch import logs
from launch.slurm import queue
from launch.slurm.records import JobRecord, record_job
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import write_json
from sft_dist.run.folder import RunFolder
from tests.launch.conftest import make_recipe


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "demo/0123456789")
    folder.path.parent.mkdir(parents=True)
    folder.create(make_recipe())
    return folder


@pytest.mark.slow
def test_later_attempts_of_a_job_are_shown_until_it_has_left_the_queue(folder, monkeypatch, capfdbinary):
    record_job(folder, JobRecord("7", None, "devcluster", "train", ""))
    live = [True]
    monkeypatch.setattr(queue, "is_queued", lambda path: live[0])
    monkeypatch.setattr(logs, "QUERY_S", 0.05)
    monkeypatch.setattr(logs, "POLL_S", 0.02)
    folder.new_attempt().launcher_log.write_text("first\n")

    def go_on() -> None:
        time.sleep(0.3)
        with folder.all_attempts()[0].launcher_log.open("a") as file:
            file.write("first, too\n")
        second = folder.new_attempt()
        time.sleep(0.3)  # its log comes later than its folder
        second.launcher_log.write_text("second\n")
        time.sleep(0.3)
        live[0] = False

    thread = threading.Thread(target=go_on)
    thread.start()
    logs.follow_run(folder, None)
    thread.join()
    assert capfdbinary.readouterr().out == b"first\nfirst, too\n\n=== attempt 2 ===\nsecond\n"


def test_a_run_that_is_over_is_shown_from_its_newest_attempt_and_not_waited_for(folder, capfdbinary):
    folder.new_attempt().launcher_log.write_text("old\n")
    folder.new_attempt().launcher_log.write_text("new\n")
    logs.follow_run(folder, None)
    assert capfdbinary.readouterr().out == b"new\n"


def test_a_job_that_waits_is_waited_for(folder, monkeypatch, capfdbinary):
    record_job(folder, JobRecord("7", None, "devcluster", "train", ""))
    answers = iter([True] * 3)
    monkeypatch.setattr(queue, "is_queued", lambda path: next(answers, False))
    monkeypatch.setattr(logs, "QUERY_S", 0.0)
    monkeypatch.setattr(logs, "POLL_S", 0.02)
    logs.follow_run(folder, None)
    assert next(answers, None) is None
    assert capfdbinary.readouterr().out == b""


def test_slurm_is_not_asked_more_often_than_it_bears(folder, monkeypatch):
    record_job(folder, JobRecord("7", None, "devcluster", "train", ""))
    asked = []
    monkeypatch.setattr(queue, "is_queued", lambda path: bool(asked.append(path)) or True)
    live = logs._Liveness(folder)
    assert all(live.is_live() for _ in range(100))
    assert len(asked) == 1


def test_slurm_is_asked_at_once_when_an_attempt_has_ended(folder, monkeypatch):
    record_job(folder, JobRecord("7", None, "devcluster", "train", ""))
    answers = iter([True, False])
    monkeypatch.setattr(queue, "is_queued", lambda path: next(answers))
    live = logs._Liveness(folder)
    attempt = folder.new_attempt()
    assert live.is_live()
    write_json(attempt.decision_file, {"state": "finished"})
    assert not live.is_live()
    assert not live.is_live()


def test_a_run_that_was_never_started_is_said_so(folder):
    with pytest.raises(UserError, match="was never started"):
        logs.follow_run(folder, None)


def test_a_log_does_not_control_the_terminal(folder, capfdbinary):
    content = "10%\r20%\tclé\n\x1b]0;title\x07 \x9b2J".encode() + b"\xff\n"
    folder.new_attempt().launcher_log.write_bytes(content)
    logs.print_log(folder, None, None, follow=False)
    assert capfdbinary.readouterr().out == "10%\r20%\tclé\n\\x1b]0;title\\x07 \\x9b2J".encode() + b"\xff\n"


def test_where_a_job_never_came_to_an_attempt_its_own_output_is_the_log(folder, monkeypatch, capfdbinary):
    record_job(folder, JobRecord("7", None, "devcluster", "train", ""))
    with pytest.raises(UserError, match="was never started"):
        logs.log_file(folder, None, None)
    (folder.path / "slurm-7.out").write_text("module: command not found\n")
    monkeypatch.setattr(queue, "is_queued", lambda path: False)
    for follow in (False, True):
        logs.print_log(folder, None, None, follow)
        assert capfdbinary.readouterr().out == b"module: command not found\n"
    with pytest.raises(UserError, match="was never started"):
        logs.log_file(folder, None, 0)


def test_a_pipe_in_the_place_of_a_log_is_refused_and_not_waited_for(folder):
    attempt = folder.new_attempt()
    os.mkfifo(attempt.launcher_log)
    os.mkfifo(attempt.rank_log(0))
    for rank in (None, 0):
        with pytest.raises(UserError, match="is a named pipe, not a file"):
            logs.log_file(folder, None, rank)
