"""`sft-dist submit`, against stand-ins for sbatch and squeue that note what they were asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.evaluate import leaderboard_folder
from launch.planning import PlannedRun
from launch.slurm.divide import divide
from launch.slurm.queue import read_queue
from launch.slurm.records import jobs_of
from launch.slurm.submit import Submission, SubmissionFolder, evaluation_request, submit
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import read_json, write_json
from sft_dist.run.folder import RunFolder
from tests.launch.conftest import ROOT, Workplace
from tests.launch.slurm.conftest import CLUSTER, Slurm, prepared


def sent(submission: Submission, kind: str) -> list[str]:
    return [job_id for job_id, job in submission.jobs if job.kind == kind]


def test_one_run_is_one_job_with_the_run_folders_own_script(tmp_path: Path, slurm: Slurm) -> None:
    runs = prepared(tmp_path / "runs")
    done = submit(runs, CLUSTER, evaluate=False)
    folder = runs[0].plan.folder
    (words,) = slurm.calls("sbatch")
    assert words[-1] == str(folder / "job.sbatch")
    assert f"--chdir={folder}" in words
    assert sent(done, "train") == ["101"]
    assert [(record.id, record.kind, record.cluster) for record in jobs_of(folder)] == [("101", "train", "here")]


def test_a_sweep_is_one_array_over_its_run_folders(tmp_path: Path, slurm: Slurm) -> None:
    runs = prepared(tmp_path / "runs", 20)
    done = submit(runs, CLUSTER, parallel=4, evaluate=False)
    (words,) = slurm.calls("sbatch")
    script = Path(words[-1])
    assert "#SBATCH --array=0-19%4" in script.read_text().splitlines()
    assert (script.parent / "train-0.txt").read_text().splitlines() == [str(one.plan.folder) for one in runs]
    assert [jobs_of(one.plan.folder)[0].id for one in runs] == [f"101_{task}" for task in range(20)]
    assert [(job, len(part.runs)) for job, part in done.jobs] == [("101", 20)]
    assert all((one.plan.folder / "source/sft_dist/train.py").is_file() for one in runs)


def test_arrays_are_no_longer_than_the_cluster_allows(tmp_path: Path, slurm: Slurm) -> None:
    small = CLUSTER.model_copy(update={"max_array_size": 8})
    submit(prepared(tmp_path / "runs", 20), small, evaluate=False)
    arrays = [re.search(r"--array=(\S+)", Path(words[-1]).read_text()) for words in slurm.calls("sbatch")]
    assert [array[1] for array in arrays if array] == ["0-7", "0-7", "0-3"]


def test_a_cap_is_one_for_all_arrays_of_a_sweep(tmp_path: Path, slurm: Slurm) -> None:
    small = CLUSTER.model_copy(update={"max_array_size": 8})
    submit(prepared(tmp_path / "runs", 20), small, parallel=4, evaluate=False)
    waits = [[word for word in words if "dependency" in word] for words in slurm.calls("sbatch")]
    assert waits == [[], ["--dependency=afterany:101"], ["--dependency=afterany:102"]]


@pytest.mark.slow
def test_a_thousand_runs_are_one_call_of_sbatch(tmp_path: Path, slurm: Slurm) -> None:
    runs = prepared(tmp_path / "runs", 1000)
    submit(runs, CLUSTER, evaluate=False)
    assert len(slurm.calls("sbatch")) == 1
    assert len(slurm.calls("squeue")) == 1
    assert jobs_of(runs[-1].plan.folder)[0].id == "101_999"
    shared = {(one.plan.folder / "source").resolve() for one in runs}
    assert len(shared) == 1


def script_of_call(words: list[str]) -> str:
    """What submitit wrote for sbatch."""
    return Path(words[-1]).read_text()


def finish(one: PlannedRun, step: int = 8) -> None:
    """The run has ended with one checkpoint."""
    folder = RunFolder(one.plan.folder)
    write_json(folder.new_attempt().outcome_file, {"state": "finished", "last_step": step})
    folder.checkpoint(step).mkdir(parents=True)


def test_an_array_scores_each_run_and_one_job_chooses_whatever_became_of_training(tmp_path: Path, slurm: Slurm) -> None:
    small = CLUSTER.model_copy(update={"max_array_size": 3})
    runs = prepared(tmp_path / "runs", 4)
    done = submit(runs, small)
    train, train_2, score, score_2, evaluation = slurm.calls("sbatch")
    assert not [word for word in (*train, *train_2) if "dependency" in word]
    for words in (train, score, evaluation):
        assert script_of_call(words).count("#SBATCH --open-mode=append") == 1
    for words in (score, score_2):
        assert "#SBATCH --dependency=afterany:101:102\n" in script_of_call(words)
    assert "#SBATCH --array=0-2%3\n" in script_of_call(score)
    assert "#SBATCH --dependency=afterany:103:104\n" in script_of_call(evaluation)
    assert [sent(done, kind) for kind in ("train", "score", "eval")] == [["101", "102"], ["103", "104"], ["105"]]
    assert [[record.id for record in jobs_of(one.plan.folder)] for one in runs[::3]] == [
        ["101_0", "103_0", "105"],
        ["102", "104", "105"],
    ]


def test_an_evaluation_requests_what_the_trainings_do_on_one_node(tmp_path: Path) -> None:
    runs = prepared(tmp_path / "runs", 2, nodes=2, time="10min", threads_per_process=1, processes_per_node=2)
    request = evaluation_request(runs, CLUSTER)
    assert (request.nodes, request.cpus, request.time_s) == (1, 1, 600)
    (unlimited,) = prepared(tmp_path / "runs")
    assert evaluation_request([unlimited], CLUSTER).time_s == CLUSTER.max_time_s
    assert evaluation_request([runs[0], unlimited], CLUSTER).time_s == CLUSTER.max_time_s


def test_one_run_is_evaluated_by_one_job_and_one_of_a_sweep_leaves_the_sweeps_leaderboard(
    tmp_path: Path, slurm: Slurm
) -> None:
    runs = prepared(tmp_path / "runs")
    done = submit(runs, CLUSTER)
    assert sent(done, "eval") == ["102"]
    (order,) = tmp_path.glob("runs/demo/.submissions/*/eval.json")
    assert read_json(order) == {"runs": [str(runs[0].plan.folder)], "leaderboard": str(runs[0].plan.folder)}
    assert leaderboard_folder([replace(runs[0].plan, point={})]) == runs[0].plan.folder.parent
    assert "#SBATCH --dependency=afterany:101\n" in script_of_call(slurm.calls("sbatch")[1])


def test_without_submitit_nothing_is_sent_and_the_way_to_it_is_named(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'sft-dist\[slurm\]'"):
        submit(prepared(tmp_path / "runs"), CLUSTER)
    assert not slurm.calls("sbatch")
    assert not (tmp_path / "runs").exists()


def test_submitting_twice_submits_nothing_new(tmp_path: Path, slurm: Slurm) -> None:
    runs = prepared(tmp_path / "runs", 3)
    submit(runs, CLUSTER)
    before = len(slurm.calls("sbatch"))
    slurm.show("101_0|RUNNING|x", "101_1|PENDING|x", "101_2|PENDING|x", "102_0|PENDING|x", "103|PENDING|x")
    done = submit(runs, CLUSTER)
    assert len(slurm.calls("sbatch")) == before
    assert (len(done.by_state.running), len(done.by_state.waiting), done.jobs) == (1, 2, [])


def test_an_evaluation_that_was_left_out_is_sent_later_and_waits_for_what_is_queued(
    tmp_path: Path, slurm: Slurm
) -> None:
    runs = prepared(tmp_path / "runs", 3)
    submit(runs, CLUSTER, evaluate=False)
    finish(runs[0])
    slurm.show("101_1|RUNNING|x", "101_2|PENDING|x")
    assert submit(runs, CLUSTER, evaluate=False).jobs == []
    done = submit(runs, CLUSTER)
    assert [(job, part.kind) for job, part in done.jobs] == [("102", "score"), ("103", "eval")]
    assert "#SBATCH --dependency=afterany:101\n" in script_of_call(slurm.calls("sbatch")[1])


def test_finished_runs_are_evaluated_at_once_and_not_again(tmp_path: Path, slurm: Slurm) -> None:
    runs = prepared(tmp_path / "runs", 2)
    submit(runs, CLUSTER, evaluate=False)
    for one in runs:
        finish(one)
    assert sent(submit(runs, CLUSTER), "eval") == ["103"]
    assert "dependency" not in script_of_call(slurm.calls("sbatch")[1])
    slurm.show("103|RUNNING|x")
    assert submit(runs, CLUSTER).jobs == []
    slurm.show()
    damaged = [f"{runs[1].run.id} step-00000008 is damaged and excluded: trainer.json: missing"]
    board = {"rows": [{"run": runs[0].run.id, "step": 8}], "damaged": damaged}
    write_json(runs[0].plan.folder.parent / "leaderboard.json", board)
    assert submit(runs, CLUSTER).jobs == []
    RunFolder(runs[0].plan.folder).checkpoint(16).mkdir()
    assert sent(submit(runs, CLUSTER), "eval") == ["105"]


def test_an_evaluation_of_some_runs_does_not_do_for_all(tmp_path: Path, slurm: Slurm) -> None:
    runs = prepared(tmp_path / "runs", 3)
    submit(runs[:2], CLUSTER)
    submit(runs[2:], CLUSTER, evaluate=False)
    slurm.show("101_0|PENDING|x", "101_1|PENDING|x", "103|PENDING|x", "104|PENDING|x")
    assert submit(runs[:2], CLUSTER).jobs == []
    assert len(sent(submit(runs, CLUSTER), "eval")) == 1


def test_only_what_is_missing_is_sent(tmp_path: Path, slurm: Slurm) -> None:
    runs = prepared(tmp_path / "runs", 4)
    submit(runs, CLUSTER, evaluate=False)
    attempt = RunFolder(runs[0].plan.folder).new_attempt()
    write_json(attempt.outcome_file, {"state": "finished", "last_step": 9})
    slurm.show("101_1|PENDING|x")
    done = submit(runs, CLUSTER, evaluate=False)
    assert [one.run.id for one in done.by_state.missing] == [one.run.id for one in runs[2:]]
    assert jobs_of(runs[3].plan.folder)[-1].id == "102_1"


def comment_of(words: list[str]) -> str:
    (comment,) = [word.removeprefix("--comment=") for word in words if word.startswith("--comment=")]
    return comment


def test_an_evaluation_whose_record_was_lost_is_not_repeated(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = prepared(tmp_path / "runs", 2)
    known = SubmissionFolder.record

    def die_late(folder: SubmissionFolder, number: int, job: str) -> None:
        if number == 2:
            raise KeyboardInterrupt
        known(folder, number, job)

    with monkeypatch.context() as patch:
        patch.setattr(SubmissionFolder, "record", die_late)
        with pytest.raises(KeyboardInterrupt):
            submit(runs, CLUSTER)
    (comment,) = re.findall(r"--comment=(\S+)", script_of_call(slurm.calls("sbatch")[2]))
    slurm.show("101_0|RUNNING|x", "101_1|RUNNING|x", "102_0|PENDING|x", "102_1|PENDING|x", f"103|PENDING|{comment}")
    assert submit(runs, CLUSTER).jobs == []
    assert [record.id for record in jobs_of(runs[1].plan.folder)] == ["101_1", "102_1", "103"]


def test_a_submission_that_died_after_sbatch_is_not_repeated(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = prepared(tmp_path / "runs", 3)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SubmissionFolder, "record", die)
        with pytest.raises(KeyboardInterrupt):
            submit(runs, CLUSTER, evaluate=False)
    assert jobs_of(runs[0].plan.folder) == []
    slurm.show(*(f"101_{task}|PENDING|{comment_of(slurm.calls('sbatch')[0])}" for task in range(3)))
    done = submit(runs, CLUSTER, evaluate=False)
    assert len(slurm.calls("sbatch")) == 1
    assert len(done.by_state.waiting) == 3
    assert jobs_of(runs[2].plan.folder)[0].id == "101_2"


@pytest.mark.parametrize(("answer", "said"), [("fail", "no such partition"), ("garbage", "welcome to the cluster")])
def test_a_refusal_is_passed_on_and_the_runs_stay_missing(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch, answer: str, said: str
) -> None:
    runs = prepared(tmp_path / "runs")
    monkeypatch.setenv("STUB_SBATCH", answer)
    with pytest.raises(UserError, match=said):
        submit(runs, CLUSTER)
    assert divide(runs, {}).missing == runs


def test_what_was_sent_before_a_refusal_is_told_and_not_sent_again(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = CLUSTER.model_copy(update={"max_array_size": 8})
    runs = prepared(tmp_path / "runs", 12)
    monkeypatch.setenv("STUB_SBATCH", "once")
    with pytest.raises(UserError, match=r"(?s)QOSMaxSubmit.*already in the queue.*job 101 \(train of 8 runs\)"):
        submit(runs, small, evaluate=False)
    slurm.show(*(f"101_{task}|PENDING|x" for task in range(8)))
    assert divide(runs, read_queue()).missing == runs[8:]


def test_nothing_is_sent_while_the_queue_is_unknown(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_SQUEUE", "fail")
    with pytest.raises(UserError, match="Unable to contact"):
        submit(prepared(tmp_path / "runs"), CLUSTER)
    assert not slurm.calls("sbatch")


def test_runs_outside_the_folder_that_nodes_see_are_refused(tmp_path: Path, slurm: Slurm) -> None:
    shared = CLUSTER.model_copy(update={"shared_folder": "/shared"})
    with pytest.raises(UserError, match="would lie outside it"):
        submit(prepared(tmp_path / "runs"), shared)


@pytest.mark.parametrize("name", ["100%", "a\\b"])
def test_a_folder_whose_name_slurm_would_not_take_as_it_is_is_refused(tmp_path: Path, slurm: Slurm, name: str) -> None:
    with pytest.raises(UserError, match="special in Slurm log paths"):
        submit(prepared(tmp_path / name), CLUSTER)


def test_sbatch_hears_nothing_of_a_job_around_this_one(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_CPU_BIND", "SBATCH_PARTITION", "SRUN_DEBUG", "RANK", "MASTER_ADDR", "PYTHONPATH"):
        monkeypatch.setenv(name, "inherited")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    submit(prepared(tmp_path / "runs"), CLUSTER)
    env = Path(f"{slurm.log}.env").read_text()
    assert "=inherited" not in env
    assert "SLURM_CONF=/etc/slurm.conf" in env


def test_tokens_of_the_environment_are_written_nowhere(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-4711")
    submit(prepared(tmp_path / "runs", 2), CLUSTER)
    files = [file for file in (tmp_path / "runs").rglob("*") if file.is_file()]
    assert len(files) > 20
    assert len([file for file in files if file.suffix == ".pkl"]) == 3
    assert not [file for file in files if b"canary-4711" in file.read_bytes()]


@pytest.mark.slow
def test_editing_the_source_after_submission_changes_nothing(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    import sft_dist

    package = tmp_path / "checkout/sft_dist"
    shutil.copytree(Path(sft_dist.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "train.py").write_text("# not committed\n")
    monkeypatch.setattr(sft_dist, "__file__", str(package / "__init__.py"))
    runs = prepared(tmp_path / "runs", 2)
    submit(runs, CLUSTER)
    (package / "train.py").write_text("# edited while queued\n")
    assert [(one.plan.folder / "source/sft_dist/train.py").read_text() for one in runs] == ["# not committed\n"] * 2
    again = prepared(tmp_path / "runs", 2, nodes=2)
    submit(again, CLUSTER)
    assert (again[0].plan.folder / "source/sft_dist/train.py").read_text() == "# edited while queued\n"
    assert (runs[0].plan.folder / "source/sft_dist/train.py").read_text() == "# not committed\n"


def test_a_source_that_is_far_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: Slurm
) -> None:
    monkeypatch.setattr("launch.run_folders.MAX_SOURCE_BYTES", 1000)
    with pytest.raises(UserError, match="MiB of source would be copied"):
        submit(prepared(tmp_path / "runs"), CLUSTER)
    assert not slurm.calls("sbatch")


# ── the command line ────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
def test_submit_and_plan_diff_tell_the_same_story(workplace: Workplace, slurm: Slurm) -> None:
    cluster = workplace.path / "here.yaml"
    cluster.write_text("cpus_per_node: 4\nmax_time: 1h\n")
    workplace.env |= {key: os.environ[key] for key in ("PATH", "STUB_LOG", "STUB_QUEUE")}
    sweep = 'matrix={"train.seed": [1, 2, 3]}'
    words = ("demo.yaml", sweep, "--cluster", "./here.yaml")

    def diff() -> dict[str, int]:
        done = workplace.run("plan", *words, "--diff", "--json")
        assert done.returncode == 0, done.stderr
        return {name: len(runs) for name, runs in json.loads(done.stdout).items()}

    assert diff() == {"missing": 3, "waiting": 0, "running": 0, "done": 0}
    dry = workplace.run("submit", *words, "--dry-run", "--max-parallel", "2")
    assert "would submit one array of 3, at most 2 at a time: 1 node, 4 CPUs; at most 01:00:00" in dry.stdout
    assert not slurm.calls("sbatch")
    sent = workplace.run("submit", *words, "--no-check", "--max-parallel", "2")
    assert sent.returncode == 0, sent.stderr
    assert "job 101: 3 runs as an array" in sent.stdout
    slurm.show("101_0|RUNNING|x", "101_1|PENDING|x", "101_2|PENDING|x")
    assert diff() == {"missing": 0, "waiting": 2, "running": 1, "done": 0}


@pytest.mark.slow
def test_plan_prints_the_script_that_submit_sends(workplace: Workplace, slurm: Slurm) -> None:
    (workplace.path / "here.yaml").write_text("cpus_per_node: 4\nmax_time: 1h\nenvironment: {MARK: 'a b'}\n")
    workplace.env |= {key: os.environ[key] for key in ("PATH", "STUB_LOG", "STUB_QUEUE")}
    shown = workplace.run("plan", "demo.yaml", "--cluster", "./here.yaml")
    only = workplace.run("plan", "demo.yaml", "--cluster", "./here.yaml", "--script")
    assert not (workplace.path / "runs").exists()
    assert workplace.run("submit", "demo.yaml", "--no-check", "--cluster", "./here.yaml").returncode == 0
    (sent,) = (workplace.path / "runs").glob("demo/*/job.sbatch")
    assert only.stdout == sent.read_text()
    assert only.stdout in shown.stdout
    assert "here: 1 node, 4 CPUs; at most 01:00:00" in shown.stdout


@pytest.mark.slow
def test_the_cluster_local_is_this_machine(workplace: Workplace) -> None:
    workplace.say(steps=4, step_s=0.01)
    (folder,) = workplace.run_folders()
    done = workplace.run("submit", "demo.yaml", "--no-check", "--cluster", "local", "--no-eval")
    assert done.returncode == 0, done.stderr
    outcome = read_json(folder.all_attempts()[0].outcome_file)
    assert outcome is not None
    assert outcome["state"] == "finished"


@pytest.mark.slow
@pytest.mark.usefixtures("warm_python")
def test_the_cluster_local_trains_and_evaluates_what_a_cluster_would(
    tmp_path: Path, tiny_model: Path, reviews: Path, slurm: Slurm
) -> None:
    (tmp_path / "tiny.yaml").write_text(
        f"task: text-classification\nmodel: {{path: {tiny_model}}}\ndata: {{source: {reviews}, max_length: 32}}\n"
        "tuning: full\ntrain: {lr: 1.0e-3, global_batch: 16}\nresources: {processes_per_node: 1}\n"
        "matrix: {train.steps: [2, 4]}\n"
    )
    (tmp_path / "here.yaml").write_text("cpus_per_node: 1\nmax_time: 1h\n")

    def sft_dist(*words: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "launch", *words], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done

    def plans(*words: str) -> list[dict[str, Any]]:
        return json.loads(sft_dist("plan", "tiny.yaml", "--json", *words).stdout)

    here, there = plans(), plans("--cluster", "./here.yaml")
    for key in ("id", "argv", "batch", "steps", "folder"):
        assert [one[key] for one in here] == [one[key] for one in there]
    sft_dist("submit", "tiny.yaml", "--cluster", "local")
    board = read_json(tmp_path / "runs/tiny/leaderboard.json")
    assert board is not None
    assert {row["run"] for row in board["rows"]} == {one["id"] for one in here}
    assert not slurm.calls("sbatch")
    told = json.loads(sft_dist("status", "--json").stdout)
    assert [(run["best_step"], run["best_score"] is None) for run in told] == [(run["step"], False) for run in told]
    again = sft_dist("submit", "tiny.yaml", "--cluster", "local").stderr
    assert again.count("already finished") == 2
    assert "checkpoint 1/" not in again


@pytest.mark.slow
def test_without_a_cluster_the_known_ones_are_named(workplace: Workplace) -> None:
    done = workplace.run("submit", "demo.yaml")
    assert done.returncode == 2
    assert "local, devcluster, example" in done.stderr
