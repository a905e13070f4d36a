"""The command line as a user meets it, each call a process of its own."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from launch.cli import _print_any_text, cli
from tests.launch.conftest import ROOT, Workplace

HEAVY = ("torch", "accelerate", "transformers", "datasets", "numpy", "peft", "sklearn")
VERBS = (
    "init",
    "schema",
    "completion",
    "check",
    "plan",
    "run",
    "submit",
    "cluster",
    "search",
    "resume",
    "status",
    "logs",
    "cancel",
    "stop",
    "diff",
    "replay",
    "eval",
    "diagnose",
    "report",
    "board",
    "export",
    "predict",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["schema"],
        ["init", "text-classification"],
        ["plan", "demo.yaml"],
        ["plan", "demo.yaml", "--json"],
        ["plan", "demo.yaml", "--diff"],
        ["plan", "demo.yaml", "--cluster", "devcluster"],
        ["cluster", "list"],
        ["cluster", "show", "example"],
        ["status"],
        ["status", "demo.yaml"],
        ["logs", "0123"],
        ["diff", "0123", "4567"],
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported_short_of_training(workplace: Workplace, arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from launch.cli import main\n"
        f"sys.argv = ['sft-dist', *{arguments!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as exit:\n    code = exit.code or 0\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules], code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=workplace.path,
        env=workplace.env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"HEAVY [] {2 if arguments[0] in ('logs', 'diff') else 0}" in done.stdout, done.stdout + done.stderr


def test_help_needs_nothing_but_click_and_the_standard_library() -> None:
    program = "import sys, launch.cli; print(sorted(n for n in sys.modules if n.split('.')[0] in ('pydantic', 'yaml', 'sft_dist')))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("word", "verb"),
    [("train", "run"), ("logz", "logs"), ("Logs", "logs"), ("help", "--help"), ("evaluate", "eval"), ("xyzzy", "")],
)
def test_a_verb_that_does_not_exist_is_met_with_the_one_that_was_meant(word: str, verb: str) -> None:
    from click.testing import CliRunner

    from launch.cli import cli

    done = CliRunner().invoke(cli, [word])
    assert done.exit_code == 2
    assert f"No such command {word!r}" + (f"; did you mean `{verb}`?" if verb else "") in done.output


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    from click.testing import CliRunner

    from launch.cli import cli

    shown = CliRunner().invoke(cli, [verb, "--help"])
    assert shown.exit_code == 0
    assert f"sft-dist {verb}" in shown.output.split("Example:")[1]


def test_the_help_lists_every_verb() -> None:
    from launch.cli import cli

    assert tuple(cli.commands) == VERBS


@pytest.mark.slow
def test_a_mistake_in_a_recipe_exits_with_2_and_no_traceback(workplace: Workplace) -> None:
    done = workplace.run("plan", "demo.yaml", "train.lr=fast")
    assert done.returncode == 2
    assert "train.lr" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_mistakes_are_json_where_json_was_asked_for(workplace: Workplace) -> None:
    done = workplace.run("plan", "demo.yaml", "train.lr=fast", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["problems"][0]["path"] == "train.lr"


@pytest.mark.slow
def test_a_batch_that_does_not_fit_points_at_the_recipes_line(workplace: Workplace) -> None:
    done = workplace.run("plan", "demo.yaml", "--processes", "3")
    assert done.returncode == 2
    assert "demo.yaml:5:" in done.stderr
    assert "30 or 33" in done.stderr


@pytest.mark.slow
def test_plan_shows_what_run_will_seal(workplace: Workplace) -> None:
    (folder,) = workplace.run_folders()
    planned = workplace.plans()
    workplace.say(steps=1)
    assert workplace.run("run", "demo.yaml").returncode == 0
    assert json.loads(folder.plan_file.read_text()) == planned[0]


def test_python_m_launch_is_the_same_program(workplace: Workplace) -> None:
    assert workplace.run("--version").stdout.startswith("sft-dist ")


def test_status_without_runs_says_so(workplace: Workplace) -> None:
    assert workplace.run("status").stdout == "no runs yet\n"
    assert json.loads(workplace.run("status", "--json").stdout) == []


@pytest.mark.slow
def test_init_never_overwrites(workplace: Workplace) -> None:
    before = workplace.recipe.read_text()
    done = workplace.run("init", "text-classification", "-o", "demo.yaml")
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert workplace.recipe.read_text() == before


@pytest.mark.slow
def test_debug_trains_in_the_very_process(workplace: Workplace) -> None:
    """The stub stands in for the installed trainer; it reports its process id."""
    stub = workplace.path / "lib"
    stub.mkdir()
    (stub / "sitecustomize.py").write_text(
        "import runpy, os\n"
        "runpy.run_module = lambda name, **more: print('ran', name, 'in', os.getpid(), os.environ['OMP_NUM_THREADS'])\n"
    )
    env = {**workplace.env, "PYTHONPATH": f"{stub}:{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "launch", "run", "demo.yaml", "--debug", "resources.processes_per_node=1"],
        cwd=workplace.path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert f"ran sft_dist.train in {process.pid}" in out


@pytest.mark.slow
def test_debug_refuses_several_processes(workplace: Workplace) -> None:
    done = workplace.run("run", "demo.yaml", "--debug")
    assert done.returncode == 2
    assert "--processes 1" in done.stderr


def test_text_that_is_not_utf_8_is_printed_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    _print_any_text()
    print(json.dumps("a\ud800", ensure_ascii=False), flush=True)
    assert json.loads(stream.buffer.getvalue()) == "a\ud800"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "new.csv"], "--data needs --model"),
        (["--model", ""], "--data needs --model"),
        (["--model", "x", "--force"], "--model works with none of"),
        (["--cluster", "c", "--json"], "--cluster works with none of"),
        (["--model", "x", "--average", "greedy"], "--model works with none of"),
    ],
)
def test_eval_names_the_options_that_exclude_each_other(options, message):
    done = CliRunner().invoke(cli, ["eval", "my.yaml", *options])
    assert (done.exit_code, message in done.output) == (2, True)
