"""The development cluster is a real Slurm: what a site has, it has, and it goes without a trace."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.slurm.conftest import DEVCLUSTER, Cluster, devcluster, running_cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

# A script that is disturbed in its first run and ends well in the second.
UNTIL_RESTARTED = (
    '[ -n "$SLURM_RESTART_COUNT" ] && { echo "run $SLURM_RESTART_COUNT on $(hostname)"; exit; }; sleep 300'
)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def pids_on_nodes_of(cluster: Cluster) -> set[int]:
    networks = {f"net:[{file.stat().st_ino}]" for file in (cluster.folder / "ns").iterdir()}
    pids = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(folder / "ns" / "net") in networks:
                pids.add(int(folder.name))
        except OSError:
            continue  # it ended, or it is the machine's own
    return pids


# ---------------------------------------------------------------- a shell tool


def test_help_names_every_command_and_knob() -> None:
    done = subprocess.run([DEVCLUSTER, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for word in (
        "up",
        "down [--keep|--purge]",
        "status",
        "env",
        "node-cut",
        "node-heal",
        "node-kill",
        "node-off",
        "node-start",
    ):
        assert f"\n  {word}" in done.stdout
    assert "DEVCLUSTER_DIR" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "knobs", "words"),
    [
        (["fly"], {}, "unknown command fly"),
        (["up"], {"nodes": "0"}, "DEVCLUSTER_NODES=0"),
        (["up"], {"gpu_type": "h100 $(id)"}, "DEVCLUSTER_GPU_TYPE"),
        (["up"], {"dir": "/tmp/a b"}, "DEVCLUSTER_DIR=/tmp/a b"),
        (["up"], {"dir": "/tmp/" + "long" * 20}, "at most 56 characters"),
        (["down", "--kep"], {}, "unknown option --kep"),
    ],
)
def test_wrong_usage_is_refused_with_exit_code_2(
    tmp_path: Path, arguments: list[str], knobs: dict[str, str], words: str
) -> None:
    done = devcluster(Path("/tmp/no-such-devcluster"), *arguments, **knobs)
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert not Path("/tmp/no-such-devcluster").exists()


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root")
    folder = tmp_path_factory.getbasetemp() / "thesis"
    folder.mkdir()
    for name in ("chapter1", "lock", "settings"):
        (folder / name).write_text("precious")
    assert devcluster(folder, "up").returncode == 2
    assert devcluster(folder, "down").returncode == 0
    assert sorted(file.name for file in folder.iterdir()) == ["chapter1", "lock", "settings"]


def test_without_root_it_says_so_with_exit_code_3() -> None:
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []
    done = subprocess.run(
        [*drop, "bash", "-s", "up"], stdin=DEVCLUSTER.open(), capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], "DEVCLUSTER_DIR": "/tmp/no-such-devcluster"},
    )  # fmt: skip
    assert (done.returncode, "needs root" in done.stderr) == (3, True), done.stderr


def test_without_packages_or_apt_it_says_what_to_install(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root")
    for program in [
        "realpath",
        "uname",
        "id",
        "unshare",
        "true",
        "ls",
        "mkdir",
        "chmod",
        "flock",
        "dpkg-query",
        "grep",
        "wc",
        "rm",
    ]:
        (tmp_path / program).symlink_to(subprocess.check_output(["which", program], text=True).strip())
    folder = Path("/tmp") / f"sft-dist-slurm-{os.getpid()}-bare"
    done = subprocess.run(
        ["/bin/bash", DEVCLUSTER, "up"],
        env={"PATH": str(tmp_path), "DEVCLUSTER_DIR": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    assert "no apt-get: install slurmctld slurmd slurmdbd" in done.stderr
    assert devcluster(folder, "down").returncode == 0
    assert not folder.exists()


def test_purge_removes_what_up_installed_and_nothing_else(tmp_path: Path) -> None:
    """With stand-ins for the programs that change the system."""
    if os.getuid() != 0:
        pytest.skip("needs root")
    (tmp_path / "bin").mkdir()
    for program in ("apt-get", "userdel", "groupdel", "pgrep"):
        stub = tmp_path / "bin" / program
        stub.write_text(
            f'#!/bin/sh\necho "{program} $*" >>{tmp_path}/calls\n' + ("exit 1\n" if program == "pgrep" else "")
        )
        stub.chmod(0o755)
    env = {
        **{key: value for key, value in os.environ.items() if not key.startswith("DEVCLUSTER_")},
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "TMPDIR": str(tmp_path),
        "DEVCLUSTER_DIR": f"/tmp/sft-dist-slurm-{os.getpid()}-purge", "DEVCLUSTER_INSTALLED": str(tmp_path / "installed"),
    }  # fmt: skip

    def purge() -> str:
        done = subprocess.run([DEVCLUSTER, "down", "--purge"], env=env, capture_output=True, text=True, check=True)
        return done.stderr

    assert "has installed nothing" in purge()
    (tmp_path / "etc-munge").mkdir()
    (tmp_path / "other").touch()
    before = "package bash\nuser root"
    after = f"{before}\npackage munge\npackage rsync\nuser munge\ngroup munge\nfile {tmp_path}/etc-munge"
    functions = subprocess.check_output(["sed", "-n", "/^record_installed/,/^}/p", DEVCLUSTER], text=True)
    script = f'INSTALLED={tmp_path}/installed\n{functions}\nrecord_installed "$1" "$2"'
    subprocess.run(["bash", "-c", script, "bash", before, after], check=True)
    assert "removed what `up` had installed" in purge()
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call for call in calls if not call.startswith("pgrep")] == [
        "apt-get purge -y -o DPkg::Lock::Timeout=300 munge rsync", "userdel munge", "groupdel munge",
    ]  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"bin", "calls", "other"}


# ---------------------------------------------------------------- a cluster


def test_up_again_starts_nothing_and_takes_no_time(cluster: Cluster) -> None:
    def pids() -> dict[str, str]:
        return {file.name: file.read_text() for file in (cluster.folder / "run").glob("*.pid")}

    before, began = pids(), time.monotonic()
    cluster.devcluster("up")
    assert time.monotonic() - began < 5
    assert pids() == before
    assert len(before) == 4 + len(cluster.nodes)
    assert "not running" not in cluster.devcluster("status")


def test_up_with_other_knobs_is_refused(cluster: Cluster) -> None:
    done = devcluster(cluster.folder, "up", nodes="9")
    assert (done.returncode, "was made with DEVCLUSTER_NODES=4, not 9" in done.stderr) == (2, True)


def test_env_is_all_that_a_shell_needs(cluster: Cluster) -> None:
    environment = {"PATH": os.environ["PATH"], "DEVCLUSTER_DIR": str(cluster.folder)}
    line = f'eval "$({DEVCLUSTER} env)"; srun hostname'
    output = subprocess.check_output(["bash", "-c", line], env=environment, text=True)
    assert output.strip() in cluster.nodes


def test_four_nodes_have_four_host_names_and_reach_each_other_by_name(cluster: Cluster) -> None:
    assert sorted(cluster.run("srun", "-N4", "hostname").split()) == sorted(cluster.nodes)
    reach = "import socket,sys; socket.create_server((socket.gethostname(), 29500)); print(socket.gethostbyname(sys.argv[1]))"
    # The same port on four nodes at once: each has its own network.
    addresses = cluster.run("srun", "-N4", "python3", "-c", reach, cluster.nodes[0]).split()
    assert len(addresses) == 4
    assert len(set(addresses)) == 1


def test_a_job_sees_the_gpus_it_asked_for_and_no_others(idle_cluster: Cluster) -> None:
    cluster = idle_cluster
    assert cluster.run("srun", "--gpus-per-node=h100:2", "printenv", "CUDA_VISIBLE_DEVICES") == "0,1\n"
    opening = f'for n in 0 1 2 3; do LC_ALL=C head -c1 {cluster.folder}/dev/gpu$n 2>&1 | sed "s/.*: //"; done'
    if "proctrack/cgroup" in cluster.run("scontrol", "show", "config"):
        granted, denied = "No such device or address", "Operation not permitted"
        words = cluster.run("srun", "--gpus-per-node=h100:2", "bash", "-c", opening).splitlines()
        assert words == [granted, granted, denied, denied]
    refused = subprocess.run(
        ["sbatch", "--gpus-per-node=h100:5", "--wrap=true"], env=cluster.environment, capture_output=True, text=True
    )
    assert "Requested node configuration is not available" in refused.stderr


def test_an_array_runs_every_task_but_no_more_at_once_than_allowed(idle_cluster: Cluster, tmp_path: Path) -> None:
    script = f"date +%s.%N >{tmp_path}/began-$SLURM_ARRAY_TASK_ID; sleep 1; date +%s.%N >{tmp_path}/ended-$SLURM_ARRAY_TASK_ID"
    job = idle_cluster.run_sbatch(script, "--array=0-5%2")
    assert idle_cluster.wait_for_job(job) == ["COMPLETED"] * 6
    began, ended = ([float((tmp_path / f"{name}-{n}").read_text()) for n in range(6)] for name in ("began", "ended"))
    assert max(sum(b <= now < e for b, e in zip(began, ended, strict=True)) for now in began) == 2


def test_a_higher_qos_preempts_a_lower_one_which_runs_again(idle_cluster: Cluster, tmp_path: Path) -> None:
    cluster = idle_cluster
    low = cluster.run_sbatch(UNTIL_RESTARTED, "--qos=low", "-N4", "--exclusive", f"--output={tmp_path}/low")
    cluster.wait_for_state(low, "RUNNING")
    high = cluster.run_sbatch("sleep 1", "--qos=high", "-N1")
    assert cluster.wait_for_job(high) == ["COMPLETED"]
    assert cluster.wait_for_job(low) == ["PREEMPTED", "COMPLETED"]
    assert "run 1 on " in (tmp_path / "low").read_text()


@pytest.mark.parametrize("setting", ["on", "off"])
def test_a_grace_time_warns_the_batch_script_only_with_preempt_signal_on(
    idle_cluster: Cluster, tmp_path: Path, setting: str
) -> None:
    cluster = idle_cluster
    cluster.devcluster("preempt-signal", setting)
    try:
        script = f"trap 'touch {tmp_path}/warned; exit 0' USR1; touch {tmp_path}/ready; sleep 300 & wait; wait"
        job = cluster.run_sbatch(script, "--qos=grace", "-N4", "--exclusive", "--signal=B:USR1@10")
        cluster.wait_until((tmp_path / "ready").exists, 30, "the script's trap")
        high = cluster.run_sbatch("true", "--qos=high", "-N4", "--exclusive")
        cluster.wait_for_job(high, timeout_s=90)
        assert (tmp_path / "warned").exists() == (setting == "on")
        cluster.run("scancel", str(job))
    finally:
        cluster.devcluster("preempt-signal", "off")


def test_a_job_past_its_time_limit_times_out(idle_cluster: Cluster) -> None:
    job = idle_cluster.run_sbatch("sleep 300")
    idle_cluster.wait_for_state(job, "RUNNING")
    idle_cluster.run("scontrol", "update", f"jobid={job}", "EndTime=now+1")
    assert idle_cluster.wait_for_job(job, timeout_s=90) == ["TIMEOUT"]  # Slurm looks every 30 s


def test_a_job_on_a_cut_node_runs_again_elsewhere_and_the_healed_node_is_idle(
    idle_cluster: Cluster, tmp_path: Path
) -> None:
    cluster = idle_cluster
    stays, orphan = tmp_path / "stays", f"echo $$ >>{tmp_path}/pids; {UNTIL_RESTARTED}"
    job = cluster.run_sbatch(orphan, "--requeue", f"--output={stays}", "--open-mode=append")
    cluster.wait_for_state(job, "RUNNING")
    node = cluster.run("squeue", "-h", "-j", str(job), "-o", "%N").strip()
    number = str(cluster.nodes.index(node) + 1)
    cluster.devcluster("node-cut", number)
    assert cluster.wait_for_job(job, timeout_s=120) == ["NODE_FAIL", "COMPLETED"]
    assert stays.read_text().strip() in {f"run 1 on {other}" for other in cluster.nodes if other != node}
    first_run = int((tmp_path / "pids").read_text().split()[0])
    assert lives(first_run), "a pulled cable does not stop what runs on the node"
    cluster.devcluster("node-heal", number)
    assert cluster.node_state(node) == "idle"
    assert cluster.run("srun", "-w", node, "hostname").strip() == node
    assert not lives(first_run)


def test_a_short_cut_harms_no_job(idle_cluster: Cluster) -> None:
    cluster = idle_cluster
    job = cluster.run_sbatch("sleep 4", "-w", cluster.nodes[2])
    cluster.wait_for_state(job, "RUNNING")
    cluster.devcluster("node-cut", "3")
    time.sleep(1)
    cluster.devcluster("node-heal", "3")
    assert cluster.wait_for_job(job) == ["COMPLETED"]


def test_a_job_outlives_its_slurmd(idle_cluster: Cluster) -> None:
    cluster = idle_cluster
    job = cluster.run_sbatch("sleep 3", "-w", cluster.nodes[3])
    cluster.wait_for_state(job, "RUNNING")
    cluster.devcluster("node-kill", "4")
    assert devcluster(cluster.folder, "status").returncode == 1
    cluster.devcluster("node-start", "4")
    assert cluster.wait_for_job(job) == ["COMPLETED"]


def test_cutting_the_power_kills_what_ran_on_the_node(idle_cluster: Cluster, tmp_path: Path) -> None:
    cluster = idle_cluster
    job = cluster.run_sbatch(
        f"setsid sleep 300 & echo $! >{tmp_path}/pid; sleep 300", "--no-requeue", "-w", cluster.nodes[0]
    )
    cluster.wait_until(
        lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "", 30, "the job's pid"
    )
    cluster.devcluster("node-off", "1")
    assert not lives(int((tmp_path / "pid").read_text()))
    assert cluster.wait_for_job(job, timeout_s=120) == ["NODE_FAIL"]
    cluster.devcluster("node-start", "1")
    assert cluster.node_state(cluster.nodes[0]) == "idle"


# ---------------------------------------------------------------- another cluster beside it


def test_down_with_keep_and_up_again_remembers_the_jobs(cluster: Cluster) -> None:
    with running_cluster(cluster.folder.with_name(cluster.folder.name + "-k"), nodes="1", gpus="0") as other:
        job = other.run_sbatch("true")
        other.wait_for_job(job)
        other.devcluster("down", "--keep")
        assert devcluster(other.folder, "status").returncode == 1
        other.devcluster("up")
        assert other.sacct_states(job) == ["COMPLETED"]
        assert other.run("srun", "hostname").split() == list(other.nodes)
    assert not other.folder.exists()


def test_down_leaves_nothing_and_disturbs_no_other_cluster(cluster: Cluster, tmp_path: Path) -> None:
    with running_cluster(cluster.folder.with_name(cluster.folder.name + "-b"), nodes="2") as other:
        assert not set(other.nodes) & set(cluster.nodes)
        job = other.run_sbatch(
            f"setsid sleep 300 & touch {tmp_path}/ready; trap '' TERM; sleep 300", "-N2", "--requeue"
        )
        other.wait_until((tmp_path / "ready").exists, 30, f"job {job} to start")
        daemons = {int(file.read_text()) for file in (other.folder / "run").glob("*.pid")}
        processes = daemons | pids_on_nodes_of(other)
        assert len(processes) >= 4 + 2 + 1 + 2  # daemons, slurmds, the batch step, its shell and the orphan
        settings = dict(line.split("=") for line in (other.folder / "settings").read_text().splitlines())
        interface = Path("/sys/class/net", f"devcluster{settings['number']}")
        assert interface.exists()
        began = time.monotonic()
        other.devcluster("down")
        assert time.monotonic() - began < 20
        assert [pid for pid in processes if lives(pid)] == []
        assert not interface.exists()
        assert not other.folder.exists()
        assert str(other.folder) not in Path("/proc/self/mountinfo").read_text()
        assert [folder for node in other.nodes for folder in Path("/sys/fs/cgroup").glob(f"*/slurm_{node}")] == []
        assert "no cluster in" in devcluster(other.folder, "down").stderr
    assert sorted(cluster.run("srun", "-N4", "hostname").split()) == sorted(cluster.nodes)
