"""Trains a run once more, with its recipe, seed and source, in a folder of its own beside it, and compares the curves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from launch.diff import RunDifference, compare_runs, describe, losses
from launch.local.runner import LocalRunner
from launch.planning import PlannedRun, plan_run_folder
from launch.run import run_all
from launch.run_folders import copy_sealed_source, folder_name, folder_numbers
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import read_object
from sft_dist.recipe.trust import NO_TRUST, Trust
from sft_dist.run.folder import RunFolder


def replay_run(path: Path, processes: int | None, as_json: bool, trust: Trust = NO_TRUST) -> int:
    """Trains a run again on this machine; returns 0 when its losses are those of the original, 1 when not, or the exit code of a
    training that did not finish. Raises UserError."""
    planned = plan_replay(path, processes, trust)
    copy_sealed_source(RunFolder(path), RunFolder(planned.plan.folder))
    if code := run_all([planned], LocalRunner()):
        return code
    difference = compare_runs(path, planned.plan.folder)
    print(json.dumps(difference.to_json(), indent=2, ensure_ascii=False) if as_json else describe(difference))
    print(f"\n{describe_result(difference)}", file=sys.stderr)
    return 0 if difference.is_same_curve else 1


def plan_replay(path: Path, processes: int | None, trust: Trust = NO_TRUST) -> PlannedRun:
    """Plans the same training in the next free folder beside a run, with as many processes as it had. Raises UserError for a run
    that has logged nothing to compare with."""
    folder = RunFolder(path)
    if not losses(folder, "train"):
        message = f"{path.parent.name}/{path.name} has logged no step, so there is nothing to compare with"
        raise UserError(Problem(message, hint=f"train it first: sft-dist resume {path}"))
    target = path.parent / folder_name(path.name.partition("-")[0], folder_numbers(path.parent), fresh=True)
    planned = read_object(folder.plan_file).get("processes_per_node")
    return plan_run_folder(
        path, processes or (planned if isinstance(planned, int) else None), trust=trust, target=target
    )


def describe_result(difference: RunDifference) -> str:
    """Returns whether the curve was reproduced, and what may be the reason where it was not."""
    if difference.is_same_curve:
        return "the curve is reproduced: every loss is the same number"
    reasons = [name for name, section in difference.sections.items() if section.differences]
    unknown = [name for name, section in difference.sections.items() if section.unrecorded]
    texts = [f"what differs: {', '.join(reasons)}"] if reasons else ["nothing that was recorded differs"]
    texts += [f"not recorded: {', '.join(unknown)}"] if unknown else []
    if not reasons:
        texts.append("operations that are not deterministic may be the reason (train.deterministic)")
    return f"the curve is not reproduced; {'; '.join(texts)}"
