"""Every command of the README and the manual: those of the first hour are run to the letter, the others are parsed by our own
command line, or looked up where they are defined, and are run by the tests that DONE_ELSEWHERE names."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shlex
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from launch.cli import cli

ROOT = Path(__file__).resolve().parents[2]
FILES = (
    "README.md",
    "CONTRIBUTING.md",
    "slurm/devcluster/README.md",
    *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
SHELLS = ("", "console", "bash", "sh")
TREE = "launch/                 before and around a job"  # the one block without a language that is no shell's

# First words of commands -> why they are not run here.
DONE_ELSEWHERE = {
    "make": "installs into .venv; `make test` is what CI runs, and its targets are looked up in the Makefile",
    "python3 -m venv": "installs; compared with the Makefile, which CI follows",
    ".venv/bin/pip": "installs; compared with the Makefile, which CI follows",
    "pip install": "tests/integration/test_plugins.py builds and installs the example's wheel",
    "sft-dist init ordinal-text": "needs the plugin: tests/integration/test_plugins.py",
    "sft-dist run ratings.yaml": "needs the plugin: tests/integration/test_plugins.py",
    "sft-dist init language-identification": "needs the new task: tests/integration/test_contributing.py",
    "sft-dist eval": "needs trained runs: tests/integration/test_evaluation.py, test_sweep.py; parsed here",
    "sft-dist cluster": "tests/integration/test_contributing.py and tests/slurm; parsed here",
    "sft-dist submit": "needs Slurm: tests/slurm/test_quickstart.py, test_submit_evaluation.py; parsed here",
    "sft-dist plan my.yaml --cluster mine": "tests/launch/test_cli.py; parsed here",
    "sft-dist status --watch": "needs Ctrl-C: tests/slurm; parsed here",
    "sft-dist logs my/0a1b -f": "needs a run of this id: tests/launch/test_logs.py; parsed here",
    "slurm/devcluster/devcluster": "needs root: tests/slurm/test_devcluster.py; its help is read here",
    "eval": "needs root: tests/slurm/test_devcluster.py",
    "$EDITOR": "is the reader's own", "mkdir": "is bash's own",
    **dict.fromkeys(("sinfo", "srun", "sbatch", "sacct"), "needs root: tests/slurm/test_devcluster.py"),
}  # fmt: skip


def blocks(name: str) -> Iterator[list[str]]:
    """The command lines of each shell block of a file, without prompts, comments and output."""
    for _, language, text in BLOCK.findall((ROOT / name).read_text()):
        if language not in SHELLS or text.startswith(TREE):
            continue
        lines = [line for line in textwrap.dedent(text).splitlines() if line.strip()]
        if any(line.startswith("$ ") for line in lines):  # the others are output
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        yield [re.split(r"\s{2,}#", line)[0].strip() for line in lines]


def first_hour() -> list[str]:
    (block,) = (lines for lines in blocks("README.md") if lines[0].startswith("sft-dist init"))
    return block


COMMANDS = sorted({(name, line) for name in FILES for lines in blocks(name) for line in lines})


def parse(words: list[str], group: click.Group = cli) -> None:
    """Raises click.UsageError where the command line would."""
    command = group.commands[words[0]]
    if isinstance(command, click.Group):
        parse(words[1:], command)
    else:
        command.make_context(words[0], words[1:])


@pytest.mark.parametrize(("name", "line"), COMMANDS, ids=[line for _, line in COMMANDS])
def test_every_command_is_run_or_is_one_that_exists(name: str, line: str) -> None:
    assert line in first_hour() or any(line.startswith(words) for words in DONE_ELSEWHERE), f"{name}: {line}"
    for command in re.split(r"&&|\|", line):
        words = shlex.split(re.sub(r"<[^>]*>", "ID", command).split(" > ")[0])
        if words[0] == "sft-dist" and words[1:3] not in (["init", "ordinal-text"], ["init", "language-identification"]):
            parse(words[1:])
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif words[0].endswith("/devcluster"):
            usage = subprocess.run([ROOT / words[0], "--help"], capture_output=True, text=True, check=True).stdout
            assert re.search(rf"^  {words[1]}\b", usage, re.MULTILINE)
        elif words[0] == ".venv/bin/pip":
            arguments = command.split("install ")[1].strip()
            assert arguments in (ROOT / "Makefile").read_text()


def test_no_reason_is_for_a_command_that_is_gone() -> None:
    assert [words for words in DONE_ELSEWHERE if not any(line.startswith(words) for _, line in COMMANDS)] == []


@pytest.mark.parametrize("name", FILES)
def test_every_command_within_a_sentence_exists(name: str) -> None:
    text = BLOCK.sub("", (ROOT / name).read_text())
    for fragment in re.findall(r"`sft-dist\s([a-z][^`]*)`", text):
        try:
            parse(shlex.split(fragment))
        except click.MissingParameter:
            continue


# ── the first hour ──────────────────────────────────────────────────────────────────────────────────────────────────
class Newcomer:
    """A folder in which the commands are typed, with programs, home and temporary folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("bin", "home", "tmp"):
            (folder / name).mkdir()
        program = folder / "bin/sft-dist"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m launch "$@"\n')
        program.chmod(0o755)
        self.env = {
            **os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder / "home"), "HF_HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"), "PATH": f"{folder / 'bin'}:{sysconfig.get_path('scripts')}:{os.environ['PATH']}",
        }  # fmt: skip

    def type(self, line: str, **env: str) -> str:
        """Returns all output."""
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.folder, env={**self.env, **env}, stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout[-4000:]}"
        return done.stdout

    def num_ranks(self, runs: str) -> list[int]:
        """Of each attempt: what it recorded, which must be the number of its ranks' logs."""
        attempts = sorted((self.folder / runs).glob("my/*/attempts/*"))
        sizes = [json.loads((attempt / "start.json").read_text())["world_size"] for attempt in attempts]
        assert sizes == [len(list(attempt.glob("rank-*.log"))) for attempt in attempts]
        return sizes


def write_data(file: Path) -> None:
    rng = random.Random(0)
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for number in range(200):
            words = rng.choices(["lovely", "superb", "great"] if number % 2 else ["dull", "awful", "poor"], k=3)
            writer.writerow([f"{' '.join(words)} film {number} {rng.random():.6f}", ["neg", "pos"][number % 2]])


def shorten(recipe: Path, model: Path) -> None:
    """The starter with a tiny model and few steps, as a user would edit it."""
    text = recipe.read_text()
    values = {"path": str(model), "epochs": "2", "max_length": "32", "global_batch": "16", "micro_batch": "8"}
    for key, value in values.items():
        text = re.sub(rf"^(\s+#? ?){key}: [^\s#]+", rf"\g<1>{key}: {value}", text, count=1, flags=re.MULTILINE)
    recipe.write_text(text)


@pytest.mark.slow
@pytest.mark.usefixtures("warm_python")
def test_the_first_hour_of_the_readme(tmp_path: Path, tiny_model: Path) -> None:
    user = Newcomer(tmp_path)
    init, check, plan, run, debug, evaluate, predict = first_hour()
    user.type(init)
    write_data(tmp_path / "train.csv")
    shorten(tmp_path / "my.yaml", tiny_model)
    assert "page" in user.type(check)
    assert "2 processes" in user.type(plan)
    assert "finished at step" in user.type(run)
    assert "already finished" in user.type(run)  # as its comment says
    assert user.num_ranks("runs") == [2]
    user.type(debug, SFT_DIST_RUNS="debugged")
    assert user.num_ranks("debugged") == [1]
    assert "Winner: run" in user.type(evaluate)
    (folder,) = (tmp_path / "runs/my").glob("*/recipe.json")
    assert "a lovely film" in user.type(predict.replace("<run id>", folder.parent.name))
    readme = (ROOT / "README.md").read_text()
    (trainer,) = re.findall(r"`(accelerate launch [^`]* -m sft_dist\.train my\.yaml)`", readme)
    user.type(trainer, SFT_DIST_RUNS="direct")
    assert user.num_ranks("direct") == [2]
    caches = {
        path.name for path in (tmp_path / "tmp").iterdir() if path.name.startswith("torchinductor_")
    }  # torch's own
    assert {path.name for path in (tmp_path / "tmp").iterdir()} == caches
    assert {path.name for path in tmp_path.iterdir()} <= {
        "bin", "home", "tmp", "my.yaml", "train.csv", "runs", "debugged", "direct",
    }  # fmt: skip
