import random

import pytest
from click.testing import CliRunner

from launch.cli import cli
from launch.report.write import MAX_DATA_BYTES, packed_data, write_report
from launch.run_state import states_of
from sft_dist.recipe.errors import UserError
from tests.launch.report.run_files import lines_of, write_run


def test_the_verb_prints_the_file_it_wrote(tmp_path):
    run = write_run(tmp_path)
    done = CliRunner().invoke(cli, ["report", "--runs", str(tmp_path), run.id])
    assert (done.exit_code, done.output) == (0, f"{run.path / 'report.html'}\n")
    assert (run.path / "report.html").read_text().startswith("<!doctype html>")
    assert (run.path / "report.html").stat().st_mode & 0o077 == 0  # private, like all of the folder


def test_several_runs_have_their_page_above_them(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, train={"seed": seed})
    assert write_report([], str(tmp_path), None) == tmp_path / "demo/report.html"
    assert write_report([], str(tmp_path), tmp_path / "here.html") == tmp_path / "here.html"


def test_without_runs_it_is_an_error_of_the_user(tmp_path):
    with pytest.raises(UserError, match=r"no runs in .*; first: sft-dist run"):
        write_report([], str(tmp_path), None)


def test_a_file_that_cannot_be_written_is_an_error_of_the_user(tmp_path):
    write_run(tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        write_report([], str(tmp_path), tmp_path / "absent/report.html")


def test_data_are_thinned_until_they_fit(tmp_path, monkeypatch):
    rng = random.Random(0)
    lines = [line | {"loss": rng.random(), "grad_norm": rng.random()} for line in lines_of(range(1, 2001), total=2000)]
    write_run(tmp_path, lines)
    states = states_of([], str(tmp_path))
    full = len(packed_data(states))
    assert full < MAX_DATA_BYTES
    monkeypatch.setattr("launch.report.write.MAX_DATA_BYTES", full // 4)
    assert len(packed_data(states)) <= full // 4
