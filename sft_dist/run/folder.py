"""The run folder. This module owns every file name in it; the launcher and the nodes share it.

runs/<recipe name>/<run id>/
  recipe.json            the resolved recipe (every default filled in)
  plugins.json           distributions and versions of the task and the metric of other packages (absent without any)
  manifest.json          digests of recipe, plan, source and scripts, by which edits are noticed (absent in older runs)
  plan.json              what the launcher planned (absent when training was started by hand)
  source/sft_dist/       the code that trains, as it was when the run folder was created
  run.sh                 starts the run without the sft-dist command
  job.sbatch             the same on a Slurm cluster (when it was planned for one)
  jobs.jsonl             the Slurm jobs that were submitted for this run, one per line
  splits.json            which rows validation and test have, and digests of the rows of every split
  metrics.jsonl          one JSON object per line: training and validation scores
  checkpoints/step-00000100/   published checkpoints; each has a manifest.json
  averages/mean-0a1b2c3d4e/    the mean of some checkpoints, like one of them, where a sweep chose it
  attempts/001/          one start of the run: start.json, outcome.json, exit.json, verdict.json, hang.json, launcher.log,
                         and for every rank rank-0.log, .error.json, .beat.json, .stack
  evaluation/            scores and predictions, one file of each per checkpoint and split, scores of the untrained model;
                         base.* of the base model, *.lm_eval.json on general tasks; test-evaluations.jsonl
  trackers.json          what names the run in its trackers (absent without any)
  leaderboard.md .json   checkpoints by their scores
  report.html            the page that `sft-dist report` wrote about the run
  export/                the best checkpoint as a Hugging Face folder
  cancelled              Slurm jobs that the user has cancelled
  stop                   while it exists, every rank saves at the next step and exits
  lock                   held (flock) by the process that trains
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import read_json, require_safe_owner, write_json, write_text
from sft_dist.run.manifest import RECIPE, require_unchanged

if TYPE_CHECKING:
    from sft_dist.recipe.schema import Recipe


BASE_MODEL = "base"  # names the model that a run fine-tuned, where a run may be named
# What is asked of a trained run makes no other run: section -> its settings that are not in a run's id.
NOT_IN_ID = {"evaluate": {"slices", "temperature", "lm_eval"}}


def run_id(recipe: Recipe) -> str:
    """Returns ten hex digits of the SHA-256 of the resolved recipe without its name and description, and without NOT_IN_ID."""
    exclude: Any = {"name": True, "description": True, "matrix": True, "search": True, **NOT_IN_ID}
    return hashlib.sha256(recipe.model_dump_json(exclude=exclude).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class AttemptFolder:
    """One start of a run."""

    path: Path

    @property
    def number(self) -> int:
        return int(self.path.name)

    @property
    def start_file(self) -> Path:
        """Written by rank 0 before step one: attempt, time, startup_s, host, pid, world_size, first_step, ..."""
        return self.path / "start.json"

    @property
    def outcome_file(self) -> Path:
        """Written by rank 0 at an orderly end: state (finished | stopped), last_step, time, reason."""
        return self.path / "outcome.json"

    @property
    def exit_file(self) -> Path:
        """Written by the process that waited for the launch: returncode, time."""
        return self.path / "exit.json"

    @property
    def launcher_log(self) -> Path:
        """Everything `accelerate launch` and its ranks printed."""
        return self.path / "launcher.log"

    @property
    def hang_file(self) -> Path:
        """Written by the hang watcher when a rank makes no progress: kind, rank, host, step, line."""
        return self.path / "hang.json"

    @property
    def decision_file(self) -> Path:
        """Written by the requeue policy after the attempt: cause, rank, host, action."""
        return self.path / "verdict.json"

    def heartbeat_file(self, rank: int) -> Path:
        """Rewritten by a rank while it runs, also while it waits for others: rank, host, pid, step, phase, time."""
        return self.path / f"rank-{rank}.beat.json"

    def stack_file(self, rank: int) -> Path:
        """Stacks of every thread of the rank, once it has made no progress for too long."""
        return self.path / f"rank-{rank}.stack"

    def rank_log(self, rank: int) -> Path:
        """Log of a rank."""
        return self.path / f"rank-{rank}.log"

    def error_file(self, rank: int) -> Path:
        """Written by a rank that fails: rank, host, time, step, type, message, traceback, user_error."""
        return self.path / f"rank-{rank}.error.json"


@dataclass(frozen=True)
class RunFolder:
    """Names of all files in one run's folder."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.json"

    @property
    def plugins_file(self) -> Path:
        return self.path / "plugins.json"

    @property
    def plan_file(self) -> Path:
        return self.path / "plan.json"

    @property
    def source(self) -> Path:
        return self.path / "source"

    @property
    def script(self) -> Path:
        return self.path / "run.sh"

    @property
    def job_script(self) -> Path:
        return self.path / "job.sbatch"

    @property
    def jobs_file(self) -> Path:
        return self.path / "jobs.jsonl"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def trackers_file(self) -> Path:
        """What names the run in its trackers, so that a resumed run continues there."""
        return self.path / "trackers.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def averages(self) -> Path:
        """Means of checkpoints."""
        return self.path / "averages"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    def errors_file(self, step: int, split: str, members: Sequence[int] = ()) -> Path:
        """The winner's errors on a split, with the beginnings of their texts."""
        return self.evaluation / f"{self.candidate(step, members).name}.{split}.errors.json"

    @property
    def test_evaluations_file(self) -> Path:
        """One JSON line for each time that a checkpoint is scored on test: step (of a mean, also members),
        checkpoint (its fingerprint), time."""
        return self.evaluation / "test-evaluations.jsonl"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def stop_file(self) -> Path:
        return self.path / "stop"

    @property
    def cancel_file(self) -> Path:
        """Names Slurm jobs that the user has cancelled, so that they do not requeue themselves."""
        return self.path / "cancelled"

    @property
    def splits_file(self) -> Path:
        return self.path / "splits.json"

    @property
    def stream(self) -> Path:
        """Chunks of a stream, while a run trains on them."""
        return self.path / "stream"

    @property
    def lock_file(self) -> Path:
        return self.path / "lock"

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint of a step."""
        return self.checkpoints / f"step-{step:08d}"

    def candidate(self, step: int, members: Sequence[int] = ()) -> Path:
        """Folder of the checkpoint of a step, or of the mean of the checkpoints of several steps."""
        if not members:
            return self.checkpoint(step)
        return self.averages / f"mean-{hashlib.sha256(' '.join(map(str, members)).encode()).hexdigest()[:10]}"

    def recipe(self) -> Recipe:
        """Reads the resolved recipe. Raises UserError when it cannot be read, has changed since the run was made or needs a plugin
        that is not installed, or when everyone may write into another user's folder."""
        if self.path.is_dir():
            for folder in (self.path, self.source, self.checkpoints, self.averages):
                require_safe_owner(folder)
            require_unchanged(self.path, RECIPE)
        if plugins := read_json(self.plugins_file):
            from sft_dist.recipe.entry_points import require_plugins  # few runs have plugins

            require_plugins(str(self.path), plugins)
        from sft_dist.recipe.schema import Recipe  # imports pydantic, which the requeue policy and `status` do without

        try:
            return Recipe.model_validate_json(self.recipe_file.read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"{self.recipe_file}: cannot be read as a recipe: {error}") from error

    def create(self, recipe: Recipe, durable: bool = True) -> None:
        """Makes the folder, private to its owner, with `recipe.json` in it; keeps an existing recipe. Does not write the manifest,
        which comes after the other files of a run."""
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
        except FileNotFoundError:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.mkdir(mode=0o700, exist_ok=True)
        if not self.recipe_file.exists():
            from sft_dist.recipe.metrics import plugins_of  # imports pydantic, as above

            if plugins := plugins_of(recipe):
                write_json(self.plugins_file, [plugin.to_json() for plugin in plugins])
            write_text(self.recipe_file, recipe.model_dump_json(indent=2) + "\n", durable)

    def all_attempts(self) -> list[AttemptFolder]:
        """Returns every attempt so far, oldest first."""
        if not self.attempts.is_dir():
            return []
        return [AttemptFolder(path) for path in sorted(self.attempts.iterdir()) if path.name.isdecimal()]

    def new_attempt(self) -> AttemptFolder:
        """Makes the next attempt's folder; safe when two processes do so at once."""
        number = max((attempt.number for attempt in self.all_attempts()), default=0) + 1
        while True:
            attempt = AttemptFolder(self.attempts / f"{number:03d}")
            try:
                attempt.path.mkdir(mode=0o700, parents=True)
                return attempt
            except FileExistsError:
                number += 1


def plugins_in(folder: RunFolder) -> dict[str, str]:
    """Returns name -> distribution and version of the plugins that a run was made with, for people."""
    plugins = read_json(folder.plugins_file)
    entries = [plugin for plugin in plugins if isinstance(plugin, dict)] if isinstance(plugins, list) else []
    return {str(plugin.get("name")): f"{plugin.get('distribution')} {plugin.get('version')}" for plugin in entries}
