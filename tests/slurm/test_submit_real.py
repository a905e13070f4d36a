"""Submission to a real Slurm. Most trainers here are a few lines without torch; one test trains for real."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import launch
from launch.slurm.clusters import read_cluster
from launch.slurm.records import jobs_of
from sft_dist.recipe.files import read_json, write_json
from sft_dist.recipe.fingerprint import data_fingerprint
from sft_dist.run.folder import RunFolder
from tests.launch.conftest import RECIPE
from tests.slurm.conftest import Cluster

pytestmark = pytest.mark.slurm
ROOT = Path(launch.__file__).parent.parent
TRAINER = ROOT / "tests/launch/stubs/train.py"

CLUSTER = """\
partition: gpu
cpus_per_node: 2
memory_per_node: 500MB
max_time: 10min
max_nodes: 4
preemption: {signal_lead: 1min}
venv: VENV
environment: {PYTHONDONTWRITEBYTECODE: "1"}
"""

PYTHON = """\
#!/bin/bash
# Python with a stand-in for accelerate. A verdict that lies ready is given once, in place of the real one.
verdict=HERE/verdict
case "$*" in *sft_dist.run.requeue_policy*) [[ -e $verdict ]] && { cat "$verdict"; rm "$verdict"; exit; } ;; esac
export PYTHONPATH="$PYTHONPATH:STUBS"
exec REAL "$@"
"""


@dataclass
class Workplace:
    """A checkout whose trainer is the stub, a recipe, and a cluster file for the session's cluster."""

    path: Path
    cluster: Cluster
    env: dict[str, str]

    @property
    def trainer(self) -> Path:
        return self.path / "checkout/sft_dist/train.py"

    def sft_dist(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "launch", *words], cwd=self.path, env={**self.cluster.environment, **self.env},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, *words: str) -> list[RunFolder]:
        """All runs of the recipe, with the jobs they were given."""
        self.sft_dist("submit", "demo.yaml", "--cluster", "./here.yaml", "--no-eval", "--no-check", *words)
        overrides = [word for word in words if "=" in word]
        plans = json.loads(self.sft_dist("plan", "demo.yaml", "--cluster", "./here.yaml", *overrides, "--json"))
        return [RunFolder(Path(plan["folder"])) for plan in plans]

    def wait_for(self, runs: list[RunFolder], timeout_s: float = 90) -> None:
        for job in {record.job for run in runs for record in jobs_of(run.path)}:
            self.cluster.wait_for_job(int(job), timeout_s)


@pytest.fixture
def workplace(idle_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    from sft_dist.recipe.load import load

    for package in ("launch", "sft_dist"):
        shutil.copytree(ROOT / package, tmp_path / "checkout" / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "checkout/sft_dist/train.py").write_text(TRAINER.read_text())
    (tmp_path / "demo.yaml").write_text(RECIPE)
    (tmp_path / "rows.csv").write_text("text,label\na,0\nb,1\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/activate").touch()
    python = PYTHON.replace("REAL", sys.executable).replace("STUBS", str(Path(__file__).parent / "stubs"))
    (tmp_path / "venv/bin/python").write_text(python.replace("HERE", str(tmp_path)))
    (tmp_path / "venv/bin/python").chmod(0o755)
    (tmp_path / "here.yaml").write_text(CLUSTER.replace("VENV", str(tmp_path / "venv")))
    cache = tmp_path / "cache"
    monkeypatch.setenv("SFT_DIST_CACHE", str(cache))
    (cache / "rows").mkdir(parents=True)
    counted = {"splits": {"train": 320, "validation": 40, "test": 40}, "dropped": {}, "labels": ["neg", "pos"]}
    write_json(cache / "rows" / f"{data_fingerprint(load(tmp_path / 'demo.yaml'))}.json", counted)
    env = {"SFT_DIST_CACHE": str(cache), "PYTHONPATH": str(tmp_path / "checkout"), "HF_TOKEN": "canary-4711"}
    return Workplace(tmp_path, idle_cluster, {**env, "STUB": json.dumps({"steps": 5, "step_s": 0.1})})


def outcome(run: RunFolder, attempt: int = -1) -> str:
    return str((read_json(run.all_attempts()[attempt].outcome_file) or {}).get("state"))


def test_two_nodes_with_two_processes_each_train_as_four_ranks(workplace: Workplace) -> None:
    (run,) = workplace.submit("resources.nodes=2")
    workplace.wait_for([run])
    text = run.all_attempts()[0].launcher_log.read_text()
    assert [f"rank {rank} of 4 starts" in text for rank in range(4)] == [True] * 4
    assert outcome(run) == "finished"


def test_an_array_of_twenty_keeps_to_its_cap_and_trains_every_run_once(workplace: Workplace) -> None:
    sweep = f'matrix={{"train.seed": {list(range(20))}}}'
    runs = workplace.submit(sweep, "resources.processes_per_node=1", "--max-parallel", "4")
    job = int(jobs_of(runs[0].path)[0].job)
    most = 0

    def over() -> bool:
        nonlocal most
        states = workplace.cluster.run("squeue", "-h", "-r", "-j", str(job), "-o", "%T", check=False).split()
        most = max(most, states.count("RUNNING"))
        return not states

    workplace.cluster.wait_until(over, 180, f"the end of array {job}")
    assert {outcome(run) for run in runs} == {"finished"}
    assert {len(run.all_attempts()) for run in runs} == {1}
    assert 2 <= most <= 4
    assert [record.id for run in runs for record in jobs_of(run.path)] == [f"{job}_{task}" for task in range(20)]
    assert "0 to submit; skipped: 20 finished" in workplace.sft_dist(
        "submit", "demo.yaml", "--no-check", "--cluster", "./here.yaml", sweep, "resources.processes_per_node=1"
    )


def test_what_is_edited_while_the_job_waits_does_not_reach_it(workplace: Workplace) -> None:
    workplace.trainer.write_text(f'print("as it was sent")\n{TRAINER.read_text()}')
    with (workplace.path / "here.yaml").open("a") as file:
        file.write("sbatch: {hold: true}\n")
    (run,) = workplace.submit()
    recipe = run.recipe_file.read_bytes()
    workplace.trainer.write_text('raise SystemExit("edited while it waited")\n')
    (workplace.path / "demo.yaml").write_text(RECIPE.replace("epochs: 2", "epochs: 9"))
    workplace.cluster.run("scontrol", "release", jobs_of(run.path)[0].job)
    workplace.wait_for([run])
    assert "as it was sent" in run.all_attempts()[0].launcher_log.read_text()
    assert outcome(run) == "finished"
    assert run.recipe_file.read_bytes() == recipe


def test_the_run_folder_needs_nothing_but_plain_sbatch(workplace: Workplace) -> None:
    with (workplace.path / "here.yaml").open("a") as file:
        file.write("sbatch: {hold: true}\n")
    (run,) = workplace.submit("resources.nodes=2")
    workplace.cluster.run("scancel", jobs_of(run.path)[0].job)
    script = run.job_script.read_text().replace("#SBATCH --hold\n", "")
    elsewhere = workplace.path / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(workplace.path / "checkout")
    done = subprocess.run(
        ["sbatch", "--parsable"], cwd=elsewhere, input=script, capture_output=True, text=True, check=True,
        env={**workplace.cluster.environment, "STUB": workplace.env["STUB"]},
    )  # fmt: skip
    workplace.cluster.wait_for_job(int(done.stdout), 60)
    assert outcome(run) == "finished"


def test_jobs_side_by_side_on_the_same_nodes_meet_at_different_ports(workplace: Workplace) -> None:
    with (workplace.path / "here.yaml").open("a") as file:
        file.write(f"sbatch: {{nodelist: '{','.join(workplace.cluster.nodes[:2])}'}}\n")
    runs = workplace.submit('matrix={"train.seed": [1, 2, 3]}', "resources.nodes=2")
    workplace.wait_for(runs)
    assert {outcome(run) for run in runs} == {"finished"}
    logs = [run.all_attempts()[0].launcher_log.read_text() for run in runs]
    assert len({log.split("meeting at ")[1].split()[0] for log in logs}) == 3


def test_a_job_that_requeues_itself_leaves_out_the_node_it_names(workplace: Workplace) -> None:
    bad = workplace.cluster.nodes[0]
    (workplace.path / "verdict").write_text(f"action=requeue\nexclude={bad}\n")
    workplace.env["STUB"] = json.dumps({"steps": 4, "step_s": 0.1})
    (run,) = workplace.submit()
    job = int(jobs_of(run.path)[0].job)
    assert workplace.cluster.wait_for_job(job, 90)[-1] == "COMPLETED"
    first, second = (attempt.launcher_log.read_text() for attempt in run.all_attempts())
    assert f"start 0, on {bad}\n" in first
    assert f"requeue, without {bad}" in first
    assert "start 1, on " in second
    assert f"on {bad}\n" not in second


def test_a_node_on_which_the_software_does_not_load_is_left_out(workplace: Workplace) -> None:
    """One bad node would else drain a sweep: it is free again at once, and takes the next run."""
    bad = workplace.cluster.nodes[0]
    (workplace.path / "venv/bin/activate").write_text(f"[[ $SLURMD_NODENAME != {bad} ]]\n")
    (run,) = workplace.submit()
    job = int(jobs_of(run.path)[0].job)
    assert workplace.cluster.wait_for_job(job, 90)[-1] == "COMPLETED"
    assert outcome(run) == "finished"
    (attempt,) = run.all_attempts()
    assert f"on {bad}\n" not in attempt.launcher_log.read_text()
    assert f"{bad}: software: failed" in (run.path / f"slurm-{job}.out").read_text()


def test_a_thousand_runs_are_sent_at_once(workplace: Workplace) -> None:
    """One array. The time it takes is printed (`pytest -s`), not bounded: benchmarks/submit.py measures it."""
    with (workplace.path / "here.yaml").open("a") as file:
        file.write("sbatch: {hold: true}\n")
    sweep = f'matrix={{"train.seed": {list(range(1000))}}}'
    started = time.monotonic()
    said = workplace.sft_dist("submit", "demo.yaml", "--cluster", "./here.yaml", "--no-eval", "--no-check", sweep)
    print(f"\n1,000 runs submitted in {time.monotonic() - started:.1f} s: {said.splitlines()[0]}")
    records = [jobs_of(path)[0] for path in (workplace.path / "runs/demo").iterdir() if path.name[0] != "."]
    (job,) = {record.job for record in records}
    assert sorted(record.task for record in records) == list(range(1000))
    queued = workplace.cluster.run("squeue", "-h", "-r", "-j", job, "-o", "%T").split()
    assert queued == ["PENDING"] * 1000
    workplace.cluster.run("scancel", job)


def test_a_probed_cluster_can_be_submitted_to(workplace: Workplace) -> None:
    (workplace.path / "here.yaml").write_text(workplace.sft_dist("cluster", "probe"))
    workplace.sft_dist("submit", "demo.yaml", "--cluster", "./here.yaml", "--dry-run")
    cluster = read_cluster(workplace.path / "here.yaml")
    assert (cluster.partition, cluster.max_nodes, cluster.max_array_size) == ("gpu", 4, 1001)


def test_the_jobs_environment_has_the_token_and_no_file_does(workplace: Workplace) -> None:
    workplace.trainer.write_text(f'import os\nprint("token", len(os.environ["HF_TOKEN"]))\n{TRAINER.read_text()}')
    (run,) = workplace.submit()
    workplace.wait_for([run])
    assert "token 11" in run.all_attempts()[0].launcher_log.read_text()
    assert not [file for file in run.path.rglob("*") if file.is_file() and b"canary-4711" in file.read_bytes()]


def test_a_run_on_half_a_node_gets_half_of_its_gpus_and_cpus(workplace: Workplace) -> None:
    # One write each: two nodes' lines come through one srun.
    told = "os.write(1, f\"got {os.environ['CUDA_VISIBLE_DEVICES']} {os.environ['SLURM_CPUS_PER_TASK']}\\n\".encode())"
    workplace.trainer.write_text(f"import os\n{told}\n{TRAINER.read_text()}")
    text = CLUSTER.replace("VENV", str(workplace.path / "venv")).replace("cpus_per_node: 2", "cpus_per_node: 8")
    (workplace.path / "here.yaml").write_text(f"{text}gpus_per_node: 4\ngpu_type: h100\n")
    (run,) = workplace.submit("resources.nodes=2", "resources.processes_per_node=2")
    workplace.wait_for([run])
    assert run.all_attempts()[0].launcher_log.read_text().count("got 0,1 4\n") == 4


def test_a_run_folder_is_sent_again_to_go_on(workplace: Workplace) -> None:
    workplace.env["STUB"] = json.dumps({"steps": 8, "step_s": 0.1, "fail_rank": 0, "fail_step": 4, "fail_user": True})
    (run,) = workplace.submit()
    workplace.wait_for([run])
    assert outcome(run) == "None"
    workplace.env["STUB"] = json.dumps({"steps": 8, "step_s": 0.1})
    workplace.sft_dist("submit", str(run.path), "--cluster", "./here.yaml", "--no-eval", "--no-check")
    workplace.wait_for([run])
    assert len(jobs_of(run.path)) == 2
    assert outcome(run) == "finished"


@pytest.mark.slow
@pytest.mark.starts_first
def test_two_nodes_train_the_curve_of_one_process(
    idle_cluster: Cluster, tmp_path: Path, tiny_model: Path, reviews: Path
) -> None:
    """Real torch, real accelerate, gloo between two nodes; then the evaluation that waits for it. The micro-batch is
    given, so that one process draws the same dropout for the same four micro-batches (docs/decisions/0001)."""
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        f"task: text-classification\nmodel: {{path: {tiny_model}}}\n"
        f"data: {{source: {reviews}, max_length: 32}}\ntuning: full\n"
        "train: {lr: 1.0e-3, global_batch: 16, micro_batch: 4, epochs: 1, log_every: 1}\n"
    )
    env = {**idle_cluster.environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def sft_dist(*words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "launch", *words], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    sft_dist(
        "submit",
        "tiny.yaml",
        "--no-check",
        "resources.nodes=2",
        "resources.processes_per_node=2",
        "--cluster",
        "devcluster",
    )
    (folder,) = (tmp_path / "runs/tiny").glob("*/recipe.json")
    train, evaluation = jobs_of(folder.parent)
    idle_cluster.wait_for_job(int(train.job), 240)
    idle_cluster.wait_for_job(int(evaluation.job), 120)
    assert (tmp_path / "runs/tiny/leaderboard.json").is_file()
    sft_dist("run", "tiny.yaml", "--processes", "1", "--runs", "alone")
    (alone,) = (tmp_path / "alone/tiny").glob("*/metrics.jsonl")

    def losses(file: Path) -> list[float]:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        return [line["loss"] for line in lines if line["kind"] == "train"]

    assert losses(folder.parent / "metrics.jsonl") == pytest.approx(losses(alone), rel=1e-4)
    assert len(losses(alone)) >= 6
