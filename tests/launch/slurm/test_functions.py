"""Python functions as Slurm jobs: what submitit is told, what it pickles, what the call does on the node."""

from __future__ import annotations

import pickletools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.slurm.clusters import Cluster
from launch.slurm.functions import Work, parameters, send
from launch.slurm.resources import request_resources
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Resources
from sft_dist.run.remote_call import Call
from tests.launch.conftest import ROOT, STUBS

WORK = Work(
    "demo-eval", "sft_dist.evaluate:score_run", [Path("/runs/demo/a"), Path("/runs/demo/b")], Path("/runs/demo/a/source"),
    "/venv/bin/python", {"OMP_NUM_THREADS": "4"},
)  # fmt: skip


def make_cluster(**settings: Any) -> Cluster:
    return Cluster.model_validate({"name": "here", "cpus_per_node": 8, "max_time": "1h", **settings})


def told(cluster: Cluster, **changes: Any) -> dict[str, Any]:
    return parameters(
        replace(WORK, **changes), request_resources(Resources(), cluster, 1), cluster, ["7", "8"], "sft-dist:x:1", 5
    )


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its notes; sbatch and srun are stand-ins."""
    monkeypatch.setenv("PATH", f"{STUBS / 'slurm'}:/usr/bin:/bin")
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "slurm.log"))
    return tmp_path / "slurm.log"


def test_all_of_a_cluster_files_settings_hold() -> None:
    cluster = make_cluster(
        partition="gpu", account="lab", qos="high", constraint="a&b", gpus_per_node=4, gpu_type="h100", memory_per_node="400GB",
        modules=["cuda/12"], venv="/shared/my venv", environment={"A": "b'c"}, nccl={"NCCL_DEBUG": "INFO"}, scratch="/scratch",
        sbatch={"reservation": "course", "mail-type": "END", "contiguous": True}, preemption={"requeue": False},
    )  # fmt: skip
    found = told(cluster)
    header = {
        "job_name": "demo-eval", "partition": "gpu", "account": "lab", "qos": "high", "constraint": "a&b", "nodes": 1,
        "ntasks_per_node": 1, "gpus_per_node": "h100:1", "cpus_per_task": 2, "mem": "95367M", "time": "01:00:00",
        "no_requeue": True, "reservation": "course", "mail_type": "END", "contiguous": True,
        "comment": "sft-dist:x:1", "dependency": "afterany:7:8",
    }  # fmt: skip
    assert found["additional_parameters"] == header
    assert (found["time"], found["signal_delay_s"], found["array_parallelism"]) == (60, 120, 5)
    setup = found["setup"]
    assert """export A='b'"'"'c'""" in setup
    assert {"export NCCL_DEBUG=INFO", "export TMPDIR=/scratch", "export OMP_NUM_THREADS=4"} <= set(setup)
    assert setup.index("module load cuda/12 || exit 1") < setup.index("source '/shared/my venv/bin/activate' || exit 1")
    assert "export PYTHONPATH=/runs/demo/a/source" in setup


def test_a_container_is_around_the_python_or_in_sruns_options() -> None:
    from launch.slurm.functions import python_command

    container = {"runtime": "apptainer", "image": "/i$mg.sif", "mounts": ["/data"]}
    words = python_command(WORK, make_cluster(container=container))
    assert words == """apptainer exec --bind "${RUN%/*}" --bind /data '/i$mg.sif' /venv/bin/python"""
    pyxis = make_cluster(container={**container, "runtime": "pyxis"})
    assert told(pyxis)["srun_args"] == ["--container-image=/i$mg.sif", "--container-mounts=/runs/demo:/runs/demo,/data"]
    assert python_command(WORK, pyxis) == "/venv/bin/python"


def test_without_a_time_none_is_asked_for(tmp_path: Path, slurm: Path) -> None:
    cluster = make_cluster(max_time=None)
    send(WORK, request_resources(Resources(), cluster, 1), cluster, tmp_path / "jobs")
    assert "--time" not in (tmp_path / "jobs/101_submission.sh").read_text()


def test_a_warning_where_no_time_was_asked_for_is_a_preemption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """submitit's own handler, as it is when it starts a function."""
    import signal

    from submitit.core.job_environment import JobEnvironment, SignalHandler
    from submitit.core.utils import DelayedSubmission, JobPaths
    from submitit.slurm.slurm import SlurmJobEnvironment

    from sft_dist.run.remote_call import _set_missing_time_limit

    number = JobEnvironment._usr_sig()
    delayed = DelayedSubmission(Call("sft_dist.evaluate:score_run", str(tmp_path)))
    delayed.set_timeout(None, 10)  # type: ignore[arg-type]
    handler = SignalHandler(SlurmJobEnvironment(), JobPaths(tmp_path, "7", 0), delayed)
    with pytest.raises(TypeError):
        handler.has_timed_out()
    before = signal.signal(number, handler.checkpoint_and_try_requeue)
    try:
        _set_missing_time_limit()
    finally:
        signal.signal(number, before)
    assert not handler.has_timed_out()


def test_what_is_pickled_is_the_names_of_a_function_and_a_path(tmp_path: Path, slurm: Path) -> None:
    cluster = make_cluster()
    assert send(WORK, request_resources(Resources(), cluster, 1), cluster, tmp_path / "jobs") == "101"
    files = sorted((tmp_path / "jobs").glob("*.pkl"))
    assert [file.name for file in files] == ["101_0_submitted.pkl", "101_1_submitted.pkl"]
    for file, path in zip(files, WORK.paths, strict=True):
        texts = {value for _, value, _ in pickletools.genops(file.read_bytes()) if isinstance(value, str)}
        classes = {"submitit.core.utils", "DelayedSubmission", "sft_dist.run.remote_call", "Call"}
        fields = {"function", "args", "kwargs", "_result", "_done", "_timeout_min", "_timeout_countdown", "path"}
        assert texts == classes | fields | {"sft_dist.evaluate:score_run", str(path)}


def test_what_sbatch_refuses_is_passed_on(tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_SBATCH", "fail")
    cluster = make_cluster()
    with pytest.raises(UserError, match="no such partition"):
        send(WORK, request_resources(Resources(), cluster, 1), cluster, tmp_path / "jobs")


def test_sbatch_hears_nothing_of_a_job_around_this_one(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "inherited")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    cluster = make_cluster()
    send(WORK, request_resources(Resources(), cluster, 1), cluster, tmp_path / "jobs")
    heard = Path(f"{slurm}.env").read_text()
    assert "=inherited" not in heard
    assert "SLURM_CONF=/etc/slurm.conf" in heard
    import os

    assert os.environ["SBATCH_PARTITION"] == "inherited"


@pytest.mark.slow
def test_a_call_finds_its_function_and_tells_a_users_mistake_without_a_traceback(tmp_path: Path) -> None:
    call = f"from sft_dist.run.remote_call import Call; Call('sft_dist.evaluate:evaluate_runs', {str(tmp_path / 'order')!r})()"
    (tmp_path / "order").write_text('{"runs": [], "leaderboard": "/nowhere"}')
    done = subprocess.run([sys.executable, "-c", call], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        0,
        "none of these runs saved a checkpoint, so there is nothing to evaluate\n",
    )
    (tmp_path / "run/checkpoints/step-00000008").mkdir(parents=True)
    (tmp_path / "order").write_text(f'{{"runs": ["{tmp_path}/run"], "leaderboard": "/nowhere"}}')
    done = subprocess.run([sys.executable, "-c", call], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"{tmp_path}/run: no recipe.json in it")
    assert "Traceback" not in done.stderr


def test_only_functions_of_this_package_are_called() -> None:
    with pytest.raises(ValueError, match="not a function of this package"):
        Call("os:remove", "/somewhere")()


def test_a_call_is_queued_again_as_it_was() -> None:
    call = Call("sft_dist.evaluate:score_run", "/runs/demo/a")
    assert call.checkpoint().function == call
