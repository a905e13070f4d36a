"""The local backend with real processes and real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from launch.run_state import state_of
from sft_dist.run.attempt import is_running
from sft_dist.run.folder import RunFolder
from tests.launch.conftest import Workplace, wait_for

pytestmark = pytest.mark.slow


def steps_done(folder: RunFolder) -> int:
    if not folder.metrics_file.exists():
        return 0
    return folder.metrics_file.read_text().count('"kind": "train"')


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=60)
    return process.returncode, out


def test_a_run_trains_to_its_end_shows_progress_and_is_skipped_the_next_time(workplace: Workplace) -> None:
    (folder,) = workplace.run_folders()
    done = workplace.run("run", "demo.yaml")
    assert done.returncode == 0, done.stderr
    assert "step 20/20  loss 0.0500  lr 1.00e-03  320.0 examples/s" in done.stderr
    assert "step 5: validation loss 0.5000, accuracy 0.7500" in done.stderr
    assert state_of(folder.path).state == "finished"
    log = folder.all_attempts()[0].launcher_log.read_text()
    assert "rank 0 of 2 starts after step 0" in log
    assert "rank 1 of 2 starts after step 0" in log

    again = workplace.run("run", "demo.yaml")
    assert again.returncode == 0
    assert "already finished" in again.stderr
    assert len(folder.all_attempts()) == 1


def test_ctrl_c_saves_says_how_to_resume_and_resuming_goes_on(workplace: Workplace) -> None:
    (folder,) = workplace.run_folders()
    workplace.say(steps=1000)
    process = workplace.start("run", "demo.yaml")
    wait_for(lambda: steps_done(folder) >= 3)
    process.send_signal(signal.SIGINT)
    code, out = finish(process)
    assert code == 130
    assert "saving a checkpoint" in out
    assert f"sft-dist resume runs/demo/{folder.id}" in out
    stopped = state_of(folder.path)
    assert stopped.state == "stopped"
    assert 3 <= stopped.step < 1000
    assert workplace.processes() == []
    assert not folder.stop_file.exists()

    workplace.say(steps=stopped.step + 5)
    resumed = workplace.run("resume", folder.id[:4])
    assert resumed.returncode == 0, resumed.stderr
    assert f"starts after step {stopped.step}" in folder.all_attempts()[1].launcher_log.read_text()
    assert state_of(folder.path).state == "finished"


def test_ctrl_c_while_the_trainer_is_still_starting_is_not_forgotten(workplace: Workplace) -> None:
    (folder,) = workplace.run_folders()
    workplace.say(steps=200)
    process = workplace.start("run", "demo.yaml")
    wait_for(lambda: is_running(folder))  # the processes exist, the trainer has not removed an old stop file yet
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    assert state_of(folder.path).state == "stopped"


def test_sigterm_to_the_launcher_saves_as_ctrl_c_does(workplace: Workplace) -> None:
    (folder,) = workplace.run_folders()
    workplace.say(steps=1000)
    process = workplace.start("run", "demo.yaml", "--processes", "1")
    wait_for(lambda: steps_done(folder) >= 2)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 130
    assert state_of(folder.path).state == "stopped"
    assert workplace.processes() == []


def test_a_second_ctrl_c_ends_even_ranks_that_ignore_every_request(workplace: Workplace) -> None:
    (folder,) = workplace.run_folders()
    workplace.say(steps=1000, deaf=True)
    process = workplace.start("run", "demo.yaml")
    wait_for(lambda: steps_done(folder) >= 2)
    process.send_signal(signal.SIGINT)
    wait_for(folder.stop_file.exists)
    process.send_signal(signal.SIGINT)
    code, out = finish(process)
    assert code == 130
    assert "ending it now" in out
    assert workplace.processes() == []
    assert state_of(folder.path).state == "killed"


def test_a_failing_rank_ends_the_run_and_is_named_as_the_cause(workplace: Workplace) -> None:
    (folder,) = workplace.run_folders()
    workplace.say(fail_rank=1, steps=1000)
    done = workplace.run("run", "demo.yaml")
    assert done.returncode == 1
    assert "rank 1 on here: out of memory (MemoryError: no room); see attempts/001/rank-1.log" in done.stderr
    assert state_of(folder.path).state == "failed"
    assert workplace.processes() == []


def test_a_run_that_hangs_is_ended_named_and_started_again(workplace: Workplace) -> None:
    (folder,) = workplace.run_folders("resources.hang_timeout=2s")
    workplace.say(hang_at=4, steps=30)
    done = workplace.run("run", "demo.yaml", "resources.hang_timeout=2s")
    assert done.returncode == 0, done.stderr
    assert "rank 0 on here: no heartbeat" in done.stderr
    assert "restarting it" in done.stderr
    assert [attempt.number for attempt in folder.all_attempts()] == [1, 2]
    assert workplace.processes() == []


def test_a_mistake_of_the_user_found_by_the_trainer_exits_with_2(workplace: Workplace) -> None:
    workplace.run_folders()
    workplace.say(fail_rank=0, fail_user=True)
    done = workplace.run("run", "demo.yaml")
    assert done.returncode == 2
    assert "no room" in done.stderr


def test_a_failed_run_does_not_keep_the_others_from_training(workplace: Workplace) -> None:
    with workplace.recipe.open("a") as file:
        file.write("matrix: {train.seed: [1, 2]}\n")
    first, second = workplace.run_folders()
    workplace.say(steps=3, fail_rank=0, fail_step=2)
    (second.path / "step.json").write_text("2")  # beyond the step that fails
    done = workplace.run("run", "demo.yaml")
    assert done.returncode == 1
    assert state_of(first.path).state == "failed"
    assert state_of(second.path).state == "finished"
    assert "[2/2]" in done.stderr


def test_kill_9_of_the_launcher_leaves_no_process_behind_and_the_run_saved(workplace: Workplace) -> None:
    workplace.say(steps=1000)
    for processes in ("1", "2"):
        (folder,) = workplace.run_folders(f"resources.processes_per_node={processes}")
        process = workplace.start("run", "demo.yaml", f"resources.processes_per_node={processes}")
        wait_for(lambda folder=folder: steps_done(folder) >= 2)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        wait_for(lambda: workplace.processes() == [])
        wait_for(lambda folder=folder: not is_running(folder))  # the kernel takes a dead process's locks a moment later
        assert state_of(folder.path).state == "stopped", processes


def test_kill_9_of_accelerate_leaves_no_rank_behind(workplace: Workplace) -> None:
    (folder,) = workplace.run_folders()
    workplace.say(steps=1000)
    process = workplace.start("run", "demo.yaml")
    wait_for(lambda: steps_done(folder) >= 2)
    (accelerate,) = [pid for pid in workplace.processes() if b"accelerate.commands.launch" in _command_line(pid)]
    os.kill(accelerate, signal.SIGKILL)
    code, _ = finish(process)
    assert code == 1
    assert workplace.processes() == []


def _command_line(pid: int) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


def test_a_run_is_not_started_twice_at_the_same_time(workplace: Workplace) -> None:
    (folder,) = workplace.run_folders()
    workplace.say(steps=1000)
    process = workplace.start("run", "demo.yaml")
    wait_for(lambda: steps_done(folder) >= 1)
    other = workplace.run("run", "demo.yaml")
    assert "already running" in other.stderr
    assert other.returncode == 1
    assert len(folder.all_attempts()) == 1
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130


def test_status_logs_and_stop_reach_a_running_run(workplace: Workplace) -> None:
    (folder,) = workplace.run_folders()
    workplace.say(steps=1000)
    process = workplace.start("run", "demo.yaml")
    wait_for(lambda: steps_done(folder) >= 1)
    (now,) = json.loads(workplace.run("status", "--json").stdout)
    assert (now["state"], now["total_steps"]) == ("running", 1000)
    following = workplace.start("logs", folder.id[:5], "-f")
    stopped = workplace.run("stop", folder.id)
    assert stopped.returncode == 0
    assert "stopped at step" in stopped.stdout
    assert "rank 0 of 2 starts" in finish(following)[1]
    assert finish(process)[0] == 1  # unfinished, and nobody pressed Ctrl-C here
    assert not folder.stop_file.exists()


def test_run_sh_works_from_anywhere_after_the_run_folder_was_moved(workplace: Workplace) -> None:
    (folder,) = workplace.run_folders()
    workplace.say(steps=2)
    workplace.run("run", "demo.yaml")
    moved = RunFolder(workplace.path / "else where" / folder.id)
    moved.path.parent.mkdir()
    folder.path.rename(moved.path)
    (moved.path / "step.json").unlink(missing_ok=True)
    env = {**workplace.env, "SFT_DIST_ATTEMPT": "1"}
    done = subprocess.run(["bash", str(moved.script)], cwd="/", env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rank 1 of 2 starts" in done.stdout
