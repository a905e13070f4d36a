"""What Slurm says, merged with what the folders say. The outputs were recorded from Slurm 22.05.8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from launch.run_state import RunState
from launch.slurm.queue import (
    LAG_S,
    Answer,
    Job,
    explain,
    merge,
    parse_sacct,
    parse_squeue,
    query,
    query_states,
)
from launch.slurm.records import JobRecord, record_job
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import write_json
from sft_dist.run.folder import RunFolder
from tests.launch.conftest import make_recipe

SQUEUE = """\
20|PENDING|Resources||30:00|(null)|(null)
19|PENDING|BeginTime||30:00|(null)|(null)
14_2|PENDING|JobArrayTaskLimit||30:00|(null)|(null)
14_3|PENDING|JobArrayTaskLimit||30:00|(null)|(null)
18|PENDING|Dependency||30:00|afterany:14_*(unfulfilled)|(null)
16|PENDING|DependencyNeverSatisfied||30:00|afterok:15(failed)|(null)
17|PENDING|JobHeldUser||30:00|(null)|(null)
14_0|RUNNING|None|node1|29:56|(null)|sft-dist:a|b:0
14_1|RUNNING|None|node1|29:56|(null)|sft-dist:a|b:0
"""
SACCT = """\
15|FAILED|3:0|2026-11-21T05:30:32
16|CANCELLED by 0|0:0|2026-11-21T05:30:36
14_0|CANCELLED by 0|0:0|2026-11-21T05:30:36
14_2|CANCELLED by 0|0:0|2026-11-21T05:30:36
14_[3-4,7%2]|CANCELLED by 0|0:0|2026-11-21T05:30:36
21|NODE_FAIL|0:0|Unknown
"""


class Slurm:
    """Answers as recorded, and remembers what it was asked."""

    def __init__(self, squeue: str | None = SQUEUE, sacct: str | None = SACCT) -> None:
        self.answers = {"squeue": squeue, "sacct": sacct, "scancel": ""}
        self.calls: list[list[str]] = []

    def __call__(self, argv: Sequence[str]) -> str:
        self.calls.append(list(argv))
        answer = self.answers[argv[0]]
        if answer is None:
            raise UserError(f"{argv[0]}: Slurm accounting storage is disabled")
        return answer


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_lines_of_squeue_become_jobs_and_strange_ones_are_left_out():
    jobs = parse_squeue(SQUEUE + "slurm_load_jobs error: something\n\n")
    assert len(jobs) == 9
    assert jobs["14_0"] == Job("14_0", "RUNNING", "None", "node1", "29:56", "(null)", "sft-dist:a|b:0")


def test_tasks_of_an_array_that_never_started_are_told_apart():
    ended = parse_sacct(SACCT)
    assert {name for name, job in ended.items() if job.state == "CANCELLED"} == {
        "16", "14_0", "14_2", "14_3", "14_4", "14_7",
    }  # fmt: skip
    assert ended["21"].end is None


def test_any_number_of_runs_costs_one_squeue_and_one_sacct():
    slurm = Slurm()
    answer = query([f"14_{task}" for task in range(2000)], run=slurm)
    assert [call[0] for call in slurm.calls] == ["squeue", "sacct"]
    assert slurm.calls[1][-1] == "14"  # the array, not 2,000 names
    assert answer.summary() == "asked Slurm: 1 squeue, 1 sacct"


def test_sacct_is_not_asked_when_all_jobs_are_in_the_queue_or_it_is_switched_off():
    for wanted, accounting in ((["14_0", "20"], True), (["14_0", "15"], False)):
        slurm = Slurm()
        query(wanted, accounting, slurm)
        assert [call[0] for call in slurm.calls] == ["squeue"]


def test_runs_without_jobs_cost_nothing():
    slurm = Slurm()
    assert query([], run=slurm).summary() == ""
    assert slurm.calls == []


def test_a_sacct_that_fails_is_said_and_does_no_harm():
    answer = query(["14_0", "15"], run=Slurm(sacct=None))
    assert answer.queued
    assert "no accounting" in answer.summary()


def test_without_squeue_the_folders_word_stands():
    answer = query(["15"], run=Slurm(squeue=None))
    assert answer.queued == {}
    assert "showing the states of the run folders" in answer.summary()


# ── merging ─────────────────────────────────────────────────────────────────────────────────────────────────────────
STATE = RunState("demo", "0123456789", "/runs/x", "sealed", 0, None, None, None, None, 0, "")
NOW = 2e9


def merged(state: RunState, name: str, answer: Answer | None = None) -> RunState:
    job, _, task = name.partition("_")
    record = JobRecord(job, int(task) if task else None, "devcluster", "train", "")
    return merge(state, record, answer or Answer(parse_squeue(SQUEUE), parse_sacct(SACCT)), NOW)


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("20", "waits for free nodes (Resources)"),
        ("14_2", "--max-parallel"),
        ("18", "waits for another job (afterany:14_*(unfulfilled))"),
        ("16", "will never start: the job it waits for has failed"),
        ("17", "scontrol release"),
    ],
)
def test_waiting_is_explained(job, words):
    found = merged(STATE, job)
    assert found.state == "pending"
    assert words in found.cause


def test_a_reason_slurm_alone_knows_is_shown_as_it_is():
    assert explain(Job("1", "PENDING", "AssocGrpCpuLimit")) == "AssocGrpCpuLimit"


def test_a_requeued_run_says_why_its_last_attempt_ended():
    state = replace(STATE, state="stopped", attempts=2, cause="saved and stopped: time limit")
    assert merged(state, "19").cause.startswith("attempt 2 ended (saved and stopped: time limit); waits a moment")


def test_a_run_whose_job_runs_is_running_though_its_files_are_not_here_yet():
    assert merged(STATE, "14_0").state == "running"
    assert "on node1" in merged(STATE, "14_0").cause


def test_finished_stays_finished_whatever_slurm_says():
    assert merged(replace(STATE, state="finished"), "14_0").state == "finished"


def test_what_the_ranks_said_outweighs_slurms_exit_code():
    state = replace(STATE, state="failed", attempts=1, cause="rank 3 on node1: out of memory")
    assert merged(state, "15").cause == "rank 3 on node1: out of memory"


@pytest.mark.parametrize(
    ("past", "state", "words"),
    [
        ("NODE_FAIL", "killed", "node lost (Slurm: NODE_FAIL)"),
        ("TIMEOUT", "killed", "time limit (Slurm: TIMEOUT)"),
        ("CANCELLED", "killed", "cancelled"),
        ("OUT_OF_MEMORY", "killed", "out of memory"),
        ("FAILED", "failed", "exit code 3:0"),
    ],
)
def test_a_run_that_could_say_nothing_is_explained_by_slurm(past, state, words):
    answer = Answer(ended={"5": Job("5", past, exit_code="3:0", end=NOW - LAG_S - 1)})
    found = merged(replace(STATE, state="killed", attempts=1), "5", answer)
    assert found.state == state
    assert words in found.cause


def test_files_that_may_be_late_are_not_taken_for_failure():
    for past in ("COMPLETED", "FAILED"):
        answer = Answer(ended={"5": Job("5", past, exit_code="0:0", end=NOW - LAG_S + 5)})
        assert merged(replace(STATE, state="killed", attempts=1), "5", answer).state == "ending"


@pytest.mark.parametrize("past", ["RUNNING", "PENDING"])
def test_accounting_that_is_behind_is_not_taken_for_failure(past):
    found = merged(
        replace(STATE, state="killed", attempts=1), "5", Answer(ended={"5": Job("5", past, exit_code="0:0")})
    )
    assert found.state == "ending"


def test_a_job_that_went_before_it_began_without_a_trace_is_told():
    assert "job 5 left the queue" in merged(STATE, "5", Answer()).cause
    assert merged(STATE, "5", Answer(is_complete=False)).cause == ""


def test_a_job_that_is_ending_is_neither_running_nor_dead():
    answer = Answer({"9": Job("9", "COMPLETING", "None", "node1", "1:00", "(null)")})
    assert merged(replace(STATE, state="killed"), "9", answer).state == "ending"
    assert merged(replace(STATE, state="stopped"), "9", answer).state == "stopped"


# ── runs on disk ────────────────────────────────────────────────────────────────────────────────────────────────────
def make_run(root: Path, name: str, *jobs: JobRecord) -> Path:
    folder = RunFolder(root / "demo" / name)
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    folder.create(make_recipe())
    for job in jobs:
        record_job(folder, job)
    return folder.path


def record(job: str, task: int | None = None, kind: str = "train") -> JobRecord:
    return JobRecord(job, task, "devcluster", kind, "2026-11-21T05:30:00+00:00")


def test_the_newest_training_job_counts_and_evaluation_has_its_own_line(tmp_path):
    make_run(tmp_path, "0000000000", record("15"), record("14", 0), record("16", kind="eval"))
    make_run(tmp_path, "1111111111")  # never submitted
    slurm = Slurm()
    states, answer, lines = query_states([], str(tmp_path), slurm)
    assert [(state.state, state.job) for state in states] == [("running", "14_0"), ("sealed", "")]
    assert answer.commands == ("squeue",)
    assert "evaluation, job 16: pending, will never start" in lines[0]


def test_runs_that_have_finished_are_not_asked_about(tmp_path):
    path = make_run(tmp_path, "0000000000", record("15"))
    write_json(RunFolder(path).new_attempt().outcome_file, {"state": "finished", "last_step": 3})
    slurm = Slurm()
    assert query_states([], str(tmp_path), slurm)[0][0].state == "finished"
    assert slurm.calls == []


def test_scoring_tasks_are_counted_by_what_they_do(tmp_path):
    for task in range(3):
        make_run(tmp_path, f"{task}" * 10, record("14", task), record("20", task, "score"), record("21", kind="eval"))
    waits = "|PENDING|Dependency||1:00|afterany"
    rows = ["20_0|RUNNING|None|node1|1:00|(null)|", f"20_1{waits}:14_*|", f"20_2{waits}:14_*|", f"21{waits}:20_*|"]

    def slurm(argv):
        return "\n".join(rows) if argv[0] == "squeue" else ""

    _, _, lines = query_states([], str(tmp_path), slurm)
    assert lines == [
        "evaluation, job 20: running; 2 pending, waits for another job (afterany:14_*)",
        "evaluation, job 21: pending, waits for another job (afterany:20_*)",
    ]


@pytest.mark.parametrize("task", [None, 3])
def test_a_start_that_fails_is_explained_while_it_happens_and_afterwards(tmp_path: Path, task: int | None) -> None:
    folder = RunFolder(tmp_path / "runs/demo/0123456789")
    folder.path.parent.mkdir(parents=True)
    folder.create(make_recipe())
    record = JobRecord("19", task, "nowhere", "train", "")
    record_job(folder, record)
    output = folder.path if task is None else tmp_path / "runs/demo/.submissions/now"
    output.mkdir(parents=True, exist_ok=True)
    (output / f"slurm-{record.id}.out").write_text(
        "slurm_script: line 91: /venvs/no/bin/activate: No such file or directory\n"
        "2026-11-21T05:30:32 node1: software: failed\n"
        "slurmstepd: error: *** JOB 19 ON node1 CANCELLED AT 2026-11-21T05:30:33 DUE TO JOB REQUEUE ***\n"
    )
    line = "/venvs/no/bin/activate: No such file or directory"
    queued = f"{record.id}|PENDING|BeginTime||30:00|(null)|(null)\n"
    (state,), *_ = query_states([], str(tmp_path / "runs"), Slurm(queued))
    assert (
        state.cause == f"its start failed (slurm_script: line 91: {line}); waits a moment after a requeue (BeginTime)"
    )
    ended = f"{record.id}|FAILED|1:0|2999-11-21T05:30:36\n"
    (state,), *_ = query_states([], str(tmp_path / "runs"), Slurm("", ended))
    assert state.state == "failed"
    assert line in state.cause
    assert "*" not in state.cause
    assert (folder.path / state.cause.rpartition("see ")[2]).is_file()


@pytest.mark.parametrize(("action", "shown"), [("", "ending"), ("requeue", "ending"), ("stop", "failed")])
def test_a_run_has_not_failed_while_its_job_may_be_requeued(action, shown):
    failed = replace(STATE, state="failed", cause="killed by signal 9", attempts=1)
    record = JobRecord("30", None, "devcluster", "train", "")
    answer = Answer({"30": Job("30", "COMPLETING")})
    end = merge(failed, record, answer, NOW, action=action)
    assert end.state == shown
    left = Answer({}, {"30": Job("30", "REQUEUED")})
    assert merge(failed, record, left, NOW, action="requeue").state == "ending"
