"""`job.sbatch` and its relatives: golden texts, and what they do in a real bash with stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from launch.slurm.clusters import load_cluster
from launch.slurm.job import directive, job_script
from sft_dist.recipe.files import read_json
from tests.launch.conftest import STUBS, wait_for
from tests.launch.slurm.conftest import Bench, Golden, make_cluster, planned, run_script

FULL = {
    "gpus_per_node": 8,
    "gpu_type": "h100",
    "cpus_per_node": 96,
    "memory_per_node": "1000GiB",
    "max_time": "2d",
    "partition": "gpu",
    "account": "lab",
    "constraint": "nvlink&h100",
    "environment": {"HF_HOME": "/shared/it's here", "MARK": "$(touch /tmp/no)"},
    "nccl": {"NCCL_SOCKET_IFNAME": "ib0"},
    "scratch": "/scratch",
    "sbatch": {"mail-type": "FAIL", "exclusive": True},
}


def test_the_job_of_two_cpu_nodes_is_the_golden_one(golden: Golden) -> None:
    cluster = load_cluster("devcluster")
    golden("job_cpu.sbatch", job_script(planned(cluster), cluster, 1800))


def test_the_job_of_part_of_a_gpu_node_with_modules_is_the_golden_one(golden: Golden) -> None:
    cluster = make_cluster(**FULL, modules=["cuda/12.4", "gcc/13"], venv="/shared/venv")
    golden("job_gpu_venv.sbatch", job_script(planned(cluster, nodes=1), cluster, 1800))


def test_the_job_in_an_apptainer_container_is_the_golden_one(golden: Golden) -> None:
    container = {"runtime": "apptainer", "image": "/shared/sft.sif", "mounts": ["/shared", "/data:/data:ro"]}
    cluster = make_cluster(**FULL, container=container)
    golden("job_apptainer.sbatch", job_script(planned(cluster, python="python3"), cluster, 1800, "/usr/bin/python3"))


def test_the_job_in_a_pyxis_container_is_the_golden_one(golden: Golden) -> None:
    container = {"runtime": "pyxis", "image": "docker://nvcr.io#nvidia/pytorch:25.01-py3", "mounts": ["/a b:/c"]}
    cluster = make_cluster(**FULL, container=container)
    golden("job_pyxis.sbatch", job_script(planned(cluster, python="python3"), cluster, 1800, "/usr/bin/python3"))


def test_a_run_folder_of_0_1_is_watched_by_the_modules_of_its_own_source(tmp_path: Path) -> None:
    cluster, folder = make_cluster(), tmp_path / "runs/demo/0123456789"
    (folder / "source/sft_dist/recipe").mkdir(parents=True)
    script = job_script(planned(cluster, folder), cluster, 1800)
    assert re.findall(r"-m (sft_dist\.\S+\.\S+) ", script) == ["sft_dist.recipe.watch", "sft_dist.recipe.verdict"]
    (folder / "source/sft_dist/run").mkdir()
    script = job_script(planned(cluster, folder), cluster, 1800)
    assert re.findall(r"-m (sft_dist\.\S+\.\S+) ", script) == [
        "sft_dist.run.hang_watcher",
        "sft_dist.run.requeue_policy",
    ]


@pytest.mark.parametrize("value", ["a b", "a\nb", "$(x)", "`x`", "a'b", 'a"b', "a#b", "a;b", "a\\b", "a\tb", "a\0b"])
def test_nothing_doubtful_gets_into_an_sbatch_line(value: str) -> None:
    with pytest.raises(ValueError, match="not safe"):
        directive("comment", value)


# ── in a real bash ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_node_starts_its_processes_with_its_own_rank_and_one_address(bench: Bench) -> None:
    assert run_script(bench, bench.render()) == 0
    nodes = sorted(line for line in bench.log if line.startswith("node "))
    ranks = [re.search(r"<--machine_rank> <(\d+)>", line) for line in nodes]
    assert [rank[1] for rank in ranks if rank] == ["0", "1"]
    assert all("<--main_process_ip> <node1>" in line for line in nodes)
    ports = {re.search(r"<--main_process_port> <(\d+)>", line)[1] for line in nodes}  # type: ignore[index]
    assert len(ports) == 1
    assert all(line.endswith(f"<-m> <sft_dist.train> <{bench.run_folder}>") for line in nodes)


def test_one_task_a_node_and_all_end_when_one_fails(bench: Bench) -> None:
    run_script(bench, bench.render())
    (words,) = bench.calls("srun")
    assert words[:5] == ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--export=ALL"]


def test_srun_is_told_of_the_cpus_and_nothing_of_an_enclosing_job_is_left(bench: Bench) -> None:
    inherited = {"SLURM_CPU_BIND": "mask_cpu:0x1", "SLURM_CPU_BIND_TYPE": "mask", "SRUN_DEBUG": "3", "RANK": "5",
                 "MASTER_PORT": "29500", "SLURM_EXPORT_ENV": "NONE", "SRUN_CPUS_PER_TASK": "1"}  # fmt: skip
    run_script(bench, bench.render(), **inherited)
    env = dict(line.split("=", 1) for line in (bench.path / "log.node-0.env").read_text().splitlines() if "=" in line)
    assert env["SRUN_CPUS_PER_TASK"] == "4"
    assert not (set(inherited) - {"SRUN_CPUS_PER_TASK"}) & set(env)


def test_training_imports_the_sealed_source_wherever_the_job_was_sent_from(bench: Bench) -> None:
    run_script(bench, bench.render(), PYTHONPATH=str(bench.path))
    env = (bench.path / "log.node-1.env").read_text().splitlines()
    assert any(line.startswith(f"PYTHONPATH={bench.run_folder}/source:") for line in env)
    assert (bench.path / "log.node-1.cwd").read_text().strip() == str(bench.run_folder)


def test_the_exit_code_is_the_verdicts(bench: Bench) -> None:
    assert run_script(bench, bench.render(nodes=1), STUB_TRAIN="exit 143", STUB_VERDICT="action=stop\nexit=2") == 2


def test_a_time_limit_that_runs_out_while_saving_is_still_a_time_limit(bench: Bench) -> None:
    train = f"touch {bench.path}/up; until [[ -e {bench.path}/over ]]; do sleep 0.05; done"
    process = bench.start(bench.render(nodes=1), STUB_TRAIN=train)
    wait_for((bench.path / "up").exists)
    os.kill(process.pid, signal.SIGUSR1)
    wait_for(lambda: "USR1" in bench.launcher_log())
    os.kill(process.pid, signal.SIGTERM)
    wait_for(lambda: "TERM" in bench.launcher_log())
    (bench.path / "over").touch()
    process.communicate(timeout=20)
    (words,) = bench.calls("verdict")
    assert words[-1] == "USR1"


def test_without_a_verdict_the_exit_code_is_sruns(bench: Bench) -> None:
    assert run_script(bench, bench.render(nodes=1), STUB_TRAIN="exit 3") == 3
    exit_json = read_json(bench.run_folder / "attempts/001/exit.json")
    assert exit_json["returncode"] == 3
    assert exit_json["job"] == "77"


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_slurms_warning_asks_all_ranks_to_save_and_waits_for_them(bench: Bench, number: signal.Signals) -> None:
    train = f"touch {bench.path}/up; until [[ -e stop ]]; do sleep 0.05; done; sleep 0.3; touch {bench.path}/saved"
    process = bench.start(bench.render(nodes=1), STUB_TRAIN=train)
    wait_for((bench.path / "up").exists)
    os.kill(process.pid, number)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert (bench.path / "saved").exists()
    (words,) = bench.calls("verdict")
    assert words[-2:] == ["--batch-signal", number.name.removeprefix("SIG")]


def test_a_run_that_should_go_on_is_put_in_the_queue_again_without_the_bad_nodes(bench: Bench) -> None:
    answer = "action=requeue\nexclude=node2,node4"
    process = bench.start(bench.render(), STUB_VERDICT=answer, STUB_LEFT_OUT="node9")
    wait_for(lambda: len(bench.calls("scontrol")) == 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert bench.calls("scontrol") == [["requeue", "77"], ["update", "JobId=77", "ExcNodeList=node9,node2,node4"]]


def test_a_task_of_an_array_requeues_itself_and_not_the_array(bench: Bench) -> None:
    process = bench.start(
        bench.render(), STUB_VERDICT="action=requeue", SLURM_ARRAY_JOB_ID="77", SLURM_ARRAY_TASK_ID="5"
    )
    wait_for(lambda: bench.calls("scontrol"))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert bench.calls("scontrol") == [["requeue", "77_5"]]


def test_where_the_cluster_forbids_it_nothing_is_requeued(bench: Bench) -> None:
    run_script(bench, bench.render(preemption={"requeue": False}), STUB_VERDICT="action=requeue")
    assert not bench.calls("scontrol")


@pytest.mark.parametrize(
    "answer", ["", "action=$(touch marker)", "exclude=`touch marker`;x\naction=requeue$(x)", "garbage"]
)
def test_a_verdict_that_makes_no_sense_changes_nothing(bench: Bench, answer: str) -> None:
    assert run_script(bench, bench.render(), STUB_VERDICT=answer) == 0
    assert not bench.calls("scontrol")
    assert not list(bench.path.rglob("marker"))


def test_every_start_has_a_folder_of_its_own(bench: Bench) -> None:
    script = bench.render(nodes=1)
    for _ in range(3):
        run_script(bench, script, STUB_TRAIN="echo I am attempt $SFT_DIST_ATTEMPT")
    assert [f"I am attempt {number}" in bench.launcher_log(number) for number in (1, 2, 3)] == [True] * 3


def test_the_same_job_finds_a_free_port_although_its_first_choice_is_taken(bench: Bench) -> None:
    script = bench.render()
    run_script(bench, script)
    first = int(re.search(r"meeting at node1:(\d+)", bench.launcher_log(1))[1])  # type: ignore[index]
    with socket.socket() as taken:
        taken.bind(("", first))
        taken.listen()
        run_script(bench, script)
    second = int(re.search(r"meeting at node1:(\d+)", bench.launcher_log(2))[1])  # type: ignore[index]
    assert second != first


def test_two_jobs_that_look_at_the_same_moment_do_not_meet(bench: Bench) -> None:
    script = bench.render()
    jobs = [bench.start(script, SLURM_JOB_ID=str(1000 + number)) for number in range(3)]
    for job in jobs:
        job.communicate(timeout=30)
    ports = [re.search(r"meeting at node1:(\d+)", bench.launcher_log(number)) for number in (1, 2, 3)]
    assert len({port[1] for port in ports if port}) == 3


def test_a_port_that_was_snatched_away_is_replaced(bench: Bench) -> None:
    train = f'[[ -e {bench.path}/second ]] || {{ touch {bench.path}/second; echo "EADDRINUSE" ; exit 1; }}'
    assert run_script(bench, bench.render(nodes=1), STUB_TRAIN=train) == 0
    ports = re.findall(r"meeting at node1:(\d+)", bench.launcher_log())
    assert len(set(ports)) == 2
    assert [path.name for path in (bench.run_folder / "attempts").iterdir()] == ["001"]


def test_a_batch_host_that_cannot_name_the_first_node_ends_the_job(bench: Bench) -> None:
    assert run_script(bench, bench.render(preemption={"requeue": False}), STUB_NODES=" ", SLURMD_NODENAME="node1") == 1
    assert not bench.calls("srun")
    assert not bench.calls("scontrol")
    assert "scontrol does not name" in bench.launcher_log()


@pytest.mark.parametrize(("left_out", "told"), [("(null)", "node1"), ("node7,gpu[2-4]", "node7,gpu[2-4],node1")])
def test_a_node_without_the_software_is_left_out_and_the_job_tried_elsewhere(
    bench: Bench, left_out: str, told: str
) -> None:
    process = bench.start(bench.render(venv="/not/there"), SLURMD_NODENAME="node1", STUB_LEFT_OUT=left_out)
    wait_for(lambda: len(bench.calls("scontrol")) == 2)
    os.killpg(process.pid, signal.SIGKILL)
    assert "node1: software: failed" in process.communicate()[0]
    assert bench.calls("scontrol") == [["requeue", "77"], ["update", "JobId=77", f"ExcNodeList={told}"]]
    assert not bench.calls("srun")


def test_what_fails_on_a_second_node_as_well_is_no_nodes_fault(bench: Bench) -> None:
    script = bench.render(nodes=1, venv="/not/there")
    output = bench.path / "slurm-77.out"
    output.write_text("2026-11-21T05:30:32 node1: software: failed\n")
    with output.open("a") as file:
        env = {**bench.env, "SLURMD_NODENAME": "node2"}
        done = subprocess.run(["bash", str(script)], env=env, stdout=file, stderr=file, timeout=30, check=False)
    assert done.returncode == 1
    assert not bench.calls("scontrol")
    assert "software: failed on another node, too: no node is at fault" in output.read_text()


def test_what_fails_on_the_machine_that_submitted_costs_no_requeue(bench: Bench) -> None:
    bench.run_folder.mkdir(parents=True)
    cluster = make_cluster(venv="/not/there")
    script = bench.path / "slurm_script"
    plan = planned(cluster, bench.run_folder, 1, str(STUBS / "slurm/python"))
    script.write_text(job_script(plan, cluster, 1800, lacks_software=True))
    process = bench.start(script, SLURMD_NODENAME="node1")
    assert "software: failed on the machine that submitted, too" in process.communicate(timeout=30)[0]
    assert process.returncode == 1
    assert not bench.calls("scontrol")


def test_what_no_node_has_is_not_looked_for_on_all_of_them(bench: Bench) -> None:
    script = bench.render(venv="/not/there")
    assert run_script(bench, script, SLURMD_NODENAME="node3", STUB_LEFT_OUT="node7,node1,node2") == 1
    assert not bench.calls("scontrol")


def test_where_no_other_node_is_left_the_job_fails_instead_of_waiting_for_ever(bench: Bench) -> None:
    script = bench.render(nodes=1, venv="/not/there")
    assert run_script(bench, script, SLURMD_NODENAME="node1", STUB_NUM_NODES="1") == 1
    assert not bench.calls("scontrol")


def test_a_controller_that_is_away_is_asked_again_and_a_lost_run_is_no_success(bench: Bench) -> None:
    answer = "action=requeue\nexit=0"
    assert run_script(bench, bench.render(nodes=1), STUB_VERDICT=answer, STUB_SCONTROL="fail") == 1
    assert bench.calls("scontrol") == [["requeue", "77"]] * 10
    assert "submit it again" in bench.launcher_log()


def test_a_warning_before_training_has_begun_is_not_lost(bench: Bench) -> None:
    (bench.path / "bin").mkdir()
    here = bench.path
    (here / "bin/activate").write_text(f"touch {here}/loading; until [[ -e {here}/go ]]; do sleep 0.05; done\n")
    script = bench.render(nodes=1, venv=str(here))
    process = bench.start(script, STUB_TRAIN=f"[[ -e stop ]] && touch {here}/saved")
    wait_for((here / "loading").exists)
    os.kill(process.pid, signal.SIGUSR1)
    (here / "go").touch()
    process.communicate(timeout=20)
    assert (here / "saved").exists()
    (words,) = bench.calls("verdict")
    assert words[-2:] == ["--batch-signal", "USR1"]


def test_no_process_is_left_when_the_job_ends(bench: Bench) -> None:
    process = bench.start(bench.render(nodes=1))
    process.communicate(timeout=30)
    time.sleep(0.2)
    assert subprocess.run(["pgrep", "-s", str(process.pid)], capture_output=True, check=False).stdout == b""
