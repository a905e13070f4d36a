import pytest

from launch.report.attempts import attempts_of, cost_of, phases_of
from launch.report.curves import first_steps, read_metrics
from tests.launch.report.run_files import BEGIN, lines_of, write_run


def attempts(folder):
    return attempts_of(folder, read_metrics(folder.metrics_file))


def test_every_second_of_an_attempt_has_a_phase(tmp_path):
    (attempt,) = attempts(write_run(tmp_path))
    assert attempt["state"] == "finished"
    assert (attempt["start"], attempt["end"]) == (BEGIN - 20, BEGIN + 50)
    assert attempt["seconds"] == {"starting": 20.0, "training": 40.0, "validation": 10.0}
    assert [kind for kind, _, _ in attempt["phases"]] == [
        "starting",
        "training",
        "validation",
        "training",
        "validation",
    ]
    assert sum(end - start for _, start, end in attempt["phases"]) == attempt["end"] - attempt["start"]


def test_steps_that_were_trained_again_are_not_productive(tmp_path):
    lines = [*lines_of(range(1, 31)), *lines_of(range(21, 41), attempt=2, begin=BEGIN + 1000)]
    first, second = attempts(write_run(tmp_path, lines))
    assert first["state"] == "killed"
    assert first["seconds"]["repeated"] == 10.0
    assert first["seconds"]["training"] + second["seconds"]["training"] == 40.0
    cost = cost_of([first, second])
    # Two processes each; the pause between the attempts cost nothing.
    assert cost["total"] == 2 * (20 + 35 + 20 + 25)
    assert cost["goodput"] == pytest.approx(40 / 100)


def test_the_background_write_of_a_checkpoint_takes_no_time_of_training():
    lines = lines_of(range(1, 4), validate_every=100)
    lines.insert(2, {**lines[1], "kind": "checkpoint", "time": lines[1]["time"] + 0.5, "seconds": 7.0})
    phases = phases_of(lines, first_steps(lines), BEGIN, BEGIN, BEGIN + 4)
    assert phases == [("training", BEGIN, BEGIN + 3), ("ending", BEGIN + 3, BEGIN + 4)]


def test_an_attempt_without_files_has_an_end_and_no_time(tmp_path):
    folder = write_run(tmp_path)
    folder.new_attempt()
    assert attempts(folder)[1].keys() == {"number", "state", "cause"}
    assert cost_of(attempts(folder))["total"] == 140.0


def test_very_many_phases_become_broad(tmp_path):
    folder = write_run(tmp_path, lines_of(range(1, 401), total=400, validate_every=2))
    (attempt,) = attempts(folder)
    assert [kind for kind, _, _ in attempt["phases"]] == ["starting", "training"]
    assert attempt["seconds"]["validation"] == 1000.0
