"""A search of thirty trials on a real Slurm, whose controller is killed again and again: no trial is lost or trained twice."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from launch.slurm.records import jobs_of
from tests.slurm.conftest import PATIENCE
from tests.slurm.test_submit_real import Workplace, workplace  # noqa: F401  (a fixture)

pytestmark = pytest.mark.slurm

SEARCH = """\
search:
  space: {train.lr: {log: [1.0e-5, 1.0e-1]}}
  sampler: random
  budget: {trials: 30}
  pruning: {name: asha, eta: 4, first: 5 steps}
  parallel: 8
"""
# Trains by a formula, to the step at which a search pauses it.
TRAINER = """\
import json, os, sys
from pathlib import Path
folder = Path(sys.argv[1])
attempt = folder / "attempts" / f"{int(os.environ['SFT_DIST_ATTEMPT']):03d}"
saved = max((int(path.name[5:]) for path in folder.glob("checkpoints/step-*")), default=0)
lr = json.loads((folder / "recipe.json").read_text())["train"]["lr"]
last = int(os.environ.get("SFT_DIST_LAST_STEP") or 20)
(attempt / "start.json").write_text(json.dumps({"total_steps": 20, "first_step": saved, "job_id": os.environ["SLURM_JOB_ID"]}))
with (folder / "metrics.jsonl").open("a") as file:
    for step in range(saved + 5, last + 1, 5):
        file.write(json.dumps({"kind": "validation", "attempt": 1, "step": step, "time": 0, "accuracy": step * lr}) + "\\n")
checkpoint = folder / f"checkpoints/step-{last:08d}"
checkpoint.mkdir(parents=True)
(checkpoint / "manifest.json").write_text("{}")
state = "finished" if last == 20 else "stopped"
(attempt / "outcome.json").write_text(json.dumps({"state": state, "last_step": last, "reason": "as planned"}))
"""


def test_thirty_trials_with_a_controller_that_is_killed(workplace: Workplace) -> None:  # noqa: F811
    workplace.trainer.write_text(TRAINER)
    recipe = (workplace.path / "demo.yaml").read_text().replace("epochs: 2}", "epochs: 2, eval_every: 5 steps}")
    recipe = recipe.replace("processes_per_node: 2", "processes_per_node: 1")
    (workplace.path / "demo.yaml").write_text(recipe + SEARCH)
    kills_after = [3, 1, 5, 2]  # lines that the controller has printed
    deadline = time.monotonic() + 120 * PATIENCE
    while not is_over(workplace):
        assert time.monotonic() < deadline, workplace.sft_dist("search", "status", "demo.yaml")
        if control_once(workplace, kills_after[0] if kills_after else 0):
            kills_after.pop(0)
        time.sleep(1)
    assert not kills_after

    trials = status_of(workplace)["trials"]
    assert len({trial["run"] for trial in trials}) == len(trials) == 30
    finished = [trial for trial in trials if trial["state"] == "finished"]
    assert len(finished) >= 1
    assert max(trials, key=lambda trial: trial["point"]["train.lr"])["state"] == "finished"
    for trial in trials:
        folder = workplace.path / "runs/demo" / trial["run"]
        assert trial["rungs"] == [5, 20]
        num_stages = 2 if trial["state"] == "finished" else 1
        assert len(jobs_of(folder)) == len(list(folder.glob("attempts/*/outcome.json"))) == num_stages, trial


def control_once(workplace: Workplace, kill_after: int) -> bool:  # noqa: F811
    """Runs the controller once, as cron would. Returns whether it was killed, after so many lines."""
    command = [sys.executable, "-m", "launch", "search", "demo.yaml", "--cluster", "./here.yaml", "--once"]
    env = {**workplace.cluster.environment, **workplace.env}
    lines = []
    with subprocess.Popen(
        command, cwd=workplace.path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        for line in process.stderr:
            lines.append(line)
            if len(lines) == kill_after:
                process.kill()
                process.wait()
                return True
        assert process.wait() == 0, "".join(lines)
    return False


def status_of(workplace: Workplace) -> dict:  # noqa: F811
    return json.loads(workplace.sft_dist("search", "status", "demo.yaml", "--json"))


def is_over(workplace: Workplace) -> bool:  # noqa: F811
    if not list(workplace.path.glob("runs/demo/.searches/*/search.json")):
        return False
    trials = status_of(workplace)["trials"]
    ended = [trial for trial in trials if trial["state"] in ("finished", "paused", "pruned")]
    return len(trials) == len(ended) == 30
