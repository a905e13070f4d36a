"""Ten thousand hostile values through the real renderers and a real bash: each arrives as it was written, or is refused.

Two witnesses: a marker file, which the values try to make in every way a shell knows, and the words and variables that
arrive at the stand-ins for srun, python, module, conda and apptainer.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from launch.expand import Run
from launch.plan import Machine, Plan, plan_run
from launch.planning import PlannedRun, python_of
from launch.slurm.array import array_script
from launch.slurm.clusters import Cluster, read_cluster
from launch.slurm.functions import Work, send
from launch.slurm.job import job_script, software
from launch.slurm.submit import check_folders
from sft_dist.recipe.errors import UserError
from tests.launch.conftest import ROWS, STUBS, make_recipe

EXAMPLES, VALUES = 100, 100  # 10,000 values
MARK = "sftmark"  # made wherever the shell happens to be
RUN_ID = "0123456789"

HOSTILE = [
    f"$(touch {MARK})", f"`touch {MARK}`", f"; touch {MARK};", f"\n touch {MARK}\n", f"' touch {MARK} '",
    f'" ; touch {MARK} ; "', f"|touch {MARK}", f"&& touch {MARK} &&", f">{MARK}", f"<(touch {MARK})", f"${{x:=$(touch {MARK})}}",
    f"a[$(touch {MARK})]", f"\\\n#SBATCH --output={MARK}\n", "EOF\n", "'", '"', "\\", "$", "`", "-", "--", "-rf", "%j", "%A_%a",
    "..", "../..", "~", "~root", "*", "?", "[a-z]", "{a,b}", "!", "!!", "#", "#SBATCH", " ", "\t", "\r", "\x00", "\x1b[2J",
    "\x7f", "&", "|", ";", "<", ">", "(", ")", "$HOME", "${HOME}", "$'\\n'", "=", ",", ":", "@", "é", "漢", "\u2028", "\ud800", "a", "b1",
]  # fmt: skip
values = st.lists(st.sampled_from(HOSTILE) | st.text(max_size=4), min_size=1, max_size=4).map("".join)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In memory where that is possible: each of the thousands of scripts writes a dozen small files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{STUBS / 'fuzz'}:{os.environ['PATH']}")  # of sbatch and srun, which submitit looks for
        yield from _place(tmp_path_factory)


def _place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path_factory.mktemp("fuzz")
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def accepted(**given: Any) -> Cluster | None:
    """The cluster, when the schema takes it."""
    try:
        return Cluster.model_validate({"name": "here", "cpus_per_node": 4, **given})
    except ValidationError:
        return None


def first(hostile: list[str], build: Any) -> Any:
    """The first value that the schema takes in this place."""
    return next((build(value) for value in hostile if accepted(**build(value))), {})


def plan_in(folder: Path, cluster: Cluster) -> Plan | None:
    run = Run(RUN_ID, make_recipe(), {})
    plan = plan_run(run, Machine.node_of(cluster), ROWS, folder, python_of(cluster), None, cluster)
    try:
        check_folders([PlannedRun(run, plan)], cluster)
        folder.mkdir(parents=True)
    except (UserError, OSError, ValueError):
        return None
    return plan


def run_bash(script: str, place: Path, env: dict[str, str]) -> None:
    file = place / "spooled"
    file.write_text(script)
    assert subprocess.run(["bash", "-n", file], check=False, env=env).returncode == 0
    done = subprocess.run(["bash", file], cwd=place, env=env, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, (done.stdout, done.stderr, script)


def noted(place: Path, name: str) -> list[str]:
    return os.fsdecode((place / "notes" / name).read_bytes()).split("\0")[:-1]


def workplace(bench: Path) -> tuple[Path, dict[str, str]]:
    place = bench / "example"
    shutil.rmtree(place, ignore_errors=True)
    for folder in ("notes", "home", "conda/etc/profile.d"):
        (place / folder).mkdir(parents=True)
    (place / "conda/etc/profile.d/conda.sh").write_text('conda() { printf "%s\\0" "$@" >"$FUZZ_NOTES/conda"; }\n')
    env = {
        "PATH": f"{STUBS / 'fuzz'}:{os.environ['PATH']}", "HOME": str(place / "home"), "FUZZ_NOTES": str(place / "notes"),
        "FUZZ_CONDA": str(place / "conda"), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1", "FUZZ_VERDICT": "action=stop",
    }  # fmt: skip
    return place, env


@pytest.mark.slow
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    phases=[Phase.generate],
)
@given(hostile=st.lists(values, min_size=VALUES, max_size=VALUES))
def test_what_is_written_in_files_never_becomes_shell(bench: Path, hostile: list[str]) -> None:
    place, env = workplace(bench)
    given_env = {f"V{number}": value for number, value in enumerate(hostile) if accepted(environment={"V": value})}
    data: dict[str, Any] = {"environment": given_env, "scratch": "/scratch"}
    data |= first(hostile, lambda value: {"nccl": {"NCCL_SOCKET_IFNAME": value}})
    data |= first(hostile, lambda value: {"scratch": f"/scratch/{value}"})
    data |= {"modules": [value for value in hostile if accepted(modules=[value])]}
    for key in ("partition", "account", "qos", "constraint"):
        data |= first(hostile, lambda value, key=key: {key: value})
    kinds = itertools.cycle(["venv", "conda", "apptainer", "pyxis"])
    kind = next(itertools.islice(kinds, sum(map(len, hostile)) % 4, None))
    if kind == "venv":
        venv = first(hostile, lambda value: {"venv": f"{place}/venv{value}".rstrip("/")}) or {"venv": f"{place}/venv"}
        data |= venv
        try:
            (Path(venv["venv"]) / "bin").mkdir(parents=True)
            (Path(venv["venv"]) / "bin/activate").touch()
            shutil.copy(STUBS / "fuzz/python", Path(venv["venv"]) / "bin/python")
        except OSError:  # longer than a name may be
            return
    elif kind == "conda":
        data |= first(hostile, lambda value: {"conda": value}) or {"conda": "base"}
    else:
        image = first(hostile, lambda value: {"container": {"runtime": kind, "image": f"/images/{value}"}})
        data |= image or {"container": {"runtime": kind, "image": "/images/a"}}
        data["container"]["mounts"] = [
            f"/m{value}" for value in hostile if accepted(container={**data["container"], "mounts": [f"/m{value}"]})
        ]
    cluster = accepted(**data)
    assert cluster is not None
    names = [value.replace("/", "").replace("\0", "") for value in hostile]
    plans = (plan_in(place / f"runs{name}" / "demo" / RUN_ID, cluster) for name in names if "\ud800" not in name)
    plan = next(filter(None, plans), None)
    if plan is None:
        plan = plan_in(place / "runs" / "demo" / RUN_ID, cluster)
    assert plan is not None

    script = job_script(plan, cluster, 1800, str(STUBS / "fuzz/python"))
    (plan.folder / "job.sbatch").write_text(script)
    for line in (line for line in script.splitlines() if line.startswith("#SBATCH")):
        assert line.split()[1:] == [line[len("#SBATCH ") :]], line
    run_bash(script, place, env)
    arrived = dict(part.split("=", 1) for part in noted(place, "env"))
    assert {key: arrived[key] for key in given_env} == given_env
    assert arrived["TMPDIR"] == cluster.scratch
    assert noted(place, "train")[-1] == str(plan.folder)
    assert (place / "notes/pwd").read_text().rstrip("\n") == str(plan.folder)
    if cluster.modules:
        assert noted(place, "module") == ["load", *cluster.modules]
    if cluster.conda:
        assert noted(place, "conda") == ["activate", cluster.conda]
    if cluster.container and kind == "apptainer":
        mounts = [word for mount in cluster.container.mounts for word in ("--bind", mount)]
        words = ["exec", "--bind", str(plan.folder.parent), *mounts, cluster.container.image, "bash"]
        assert noted(place, "apptainer")[: len(words)] == words
    if cluster.container and kind == "pyxis":
        words = noted(place, "srun")
        assert f"--container-image={cluster.container.image}" in words
        inside = ",".join([f"{plan.folder.parent}:{plan.folder.parent}", *cluster.container.mounts])
        assert f"--container-mounts={inside}" in words

    asked = plan.request
    assert asked is not None
    names_file = place / "list.txt"
    names_file.write_text(f"{plan.folder}\n")
    array = {**env, "SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "0"}
    run_bash(array_script(asked, cluster, "demo", names_file, 1, None), place, array)
    # The evaluation's script is submitit's, which writes down what it is given as it is.
    python = str(STUBS / "fuzz/python") if cluster.container or cluster.conda else plan.argv[0]
    board, source = plan.folder.parent, plan.folder / "source"
    source.mkdir()
    work = Work("demo-eval", "sft_dist.evaluate:score_run", [plan.folder], source, python, plan.env)
    job = send(work, asked, cluster, board / "eval", after=["6"], comment="sft-dist:x:0")
    run_bash((board / f"eval/{job}_submission.sh").read_text(), place, {**env, "SLURM_JOB_ID": job})
    assert noted(place, "train") == ["-u", "-m", "submitit.core._submit", str(board / "eval")]
    arrived = dict(part.split("=", 1) for part in noted(place, "env"))
    assert {key: arrived[key] for key in given_env} == given_env
    assert arrived["PYTHONPATH"] == str(source)
    assert (place / "notes/pwd").read_text().rstrip("\n") == str(source)
    if cluster.container and kind == "apptainer":
        words = ["exec", "--bind", str(board), *mounts, cluster.container.image, python]
        assert noted(place, "apptainer")[: len(words)] == words
    if cluster.container and kind == "pyxis":
        assert f"--container-mounts={','.join([f'{board}:{board}', *cluster.container.mounts])}" in noted(place, "srun")
    assert not [path for path in place.rglob(MARK) if path.name == MARK], script


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(key=values, value=values)
@pytest.mark.slow
def test_further_options_of_sbatch_are_single_words_or_refused(bench: Path, key: str, value: str) -> None:
    import yaml

    file = bench / "fuzzed.yaml"
    for option in (key, "reservation", "mail-user"):
        try:
            file.write_text(yaml.safe_dump({"cpus_per_node": 2, "sbatch": {option: value}}, allow_unicode=True))
            cluster = read_cluster(file)
        except (UserError, UnicodeEncodeError):
            continue
        plan = plan_run(
            Run(RUN_ID, make_recipe(), {}), Machine.node_of(cluster), ROWS, bench / "demo" / RUN_ID, "p", None, cluster
        )
        lines = [line for line in job_script(plan, cluster, 1800).splitlines() if f"--{option}" in line]
        assert lines == [f"#SBATCH --{option}={value}"]
        assert not set(value) & set(" \t\n\r\"'`$\\#%;<>")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_recipes_name_that_is_no_plain_name_is_refused(name: str) -> None:
    if name in ("a", "b1"):
        assert make_recipe(name=name).name == name
        return
    with pytest.raises(ValidationError):
        make_recipe(name=name)


def test_an_unplain_name_does_not_get_into_a_header_even_if_the_schema_let_it_pass(bench: Path) -> None:
    cluster = accepted()
    assert cluster is not None
    plan = plan_run(
        Run(RUN_ID, make_recipe(), {}), Machine.node_of(cluster), ROWS, bench / "demo" / RUN_ID, "p", None, cluster
    )
    with pytest.raises(ValueError, match="not safe"):
        job_script(replace(plan, name=f"a\ntouch {MARK}"), cluster, 1800)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(hostile=st.lists(values, min_size=5, max_size=20))
def test_modules_and_conda_are_words_even_if_the_schema_let_anything_pass(bench: Path, hostile: list[str]) -> None:
    """The schema lets only plain names pass, which need no quotes: so the quotes are tried without it."""
    place, env = workplace(bench)
    words = [value.replace("\0", "").encode(errors="ignore").decode() for value in hostile]
    plain = accepted()
    assert plain is not None
    conda = next(filter(None, words), "base")
    cluster = plain.model_copy(update={"modules": words, "conda": conda})
    run_bash("\n".join(software(cluster, "exit 1")), place, env)
    assert noted(place, "module") == ["load", *words]
    assert noted(place, "conda") == ["activate", conda]
    assert not list(place.rglob(MARK))


@pytest.mark.parametrize("name", [value for value in HOSTILE if value not in ("a", "b1")])
def test_a_module_or_environment_that_is_no_plain_name_is_refused(name: str) -> None:
    assert not accepted(modules=[name])
    assert not accepted(conda=name)
