"""What samplers and promotion save beside random search, in training steps, on a real recipe.

    python benchmarks/search.py recipes/text-classification/quickstart.yaml --trials 16 --seeds 5

Each variant searches learning rate, warm-up, weight decay and batch size with the same budget of trials, once for each study
seed. `steps` are optimizer steps of all trials together; `to equal` are those until a trial is at least as good as the median best
of random search.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from launch.search.definition import read_definition
from launch.search.run import run_search
from launch.search.study import Study
from launch.search.trial import Trial

SPACE = (
    "search={space: {train.lr: {log: [1.0e-6, 1.0e-2]}, train.global_batch: {choice: [16, 32, 64]}, "
    "train.warmup: {choice: ['0%', '6%', '20%']}, train.optimizer.weight_decay: {float: [0.0, 0.3]}}}"
)
VARIANTS = {
    "random": ("search.sampler=random",),
    "tpe": ("search.sampler=tpe",),
    "random, asha": ("search.sampler=random", "search.pruning=asha"),
    "tpe, asha": ("search.sampler=tpe", "search.pruning=asha"),
}


@dataclass(frozen=True)
class Outcome:
    """One search: (steps so far, best score so far) after each trial, in the order of the trials."""

    path: list[tuple[int, float]]

    @property
    def best(self) -> float:
        return self.path[-1][1]

    @property
    def steps(self) -> int:
        return self.path[-1][0]

    def steps_to(self, score: float, maximize: bool) -> int | None:
        reached = (steps for steps, best in self.path if (best >= score if maximize else best <= score))
        return next(reached, None)


def search(recipe: str, overrides: list[str], processes: int) -> tuple[Outcome, bool]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        code = run_search(recipe, overrides, root, None, processes)
        assert code == 0, f"the search ended with exit code {code}"
        definition = read_definition(recipe, overrides, root)
        study = Study.read(definition.folder, definition.space)
        assert study
        return outcome_of(study.trials(), definition.objective.maximize), definition.objective.maximize


def outcome_of(trials: list[Trial], maximize: bool) -> Outcome:
    """Steps and best score after each trial."""
    path: list[tuple[int, float]] = []
    steps, best = 0, None
    for trial in trials:
        if trial.run:
            steps += trial.rungs[-1] if trial.state == "finished" else max(trial.scores, default=0)
        if trial.value is not None:
            best = trial.value if best is None else (max if maximize else min)(best, trial.value)
        if best is not None:
            path.append((steps, best))
    return Outcome(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="such as train.steps=100")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    outcomes: dict[str, list[Outcome]] = {name: [] for name in VARIANTS}
    maximize = True
    for seed in range(options.seeds):
        for name, settings in VARIANTS.items():
            budget = [f"search.budget.trials={options.trials}", f"search.seed={seed}"]
            outcome, maximize = search(
                options.recipe, [SPACE, *settings, *budget, *options.overrides], options.processes
            )
            outcomes[name].append(outcome)
            print(f"seed {seed}, {name}: best {outcome.best:.4f} in {outcome.steps} steps", file=sys.stderr, flush=True)
    print(table(outcomes, maximize))
    return 0


def table(outcomes: dict[str, list[Outcome]], maximize: bool) -> str:
    target = statistics.median(outcome.best for outcome in outcomes["random"])
    lines = ["| variant | best, mean (sd) | steps, mean | to equal, median | reached it |", "|---|---|---|---|---|"]
    for name, runs in outcomes.items():
        best = [outcome.best for outcome in runs]
        spread = statistics.stdev(best) if len(best) > 1 else 0.0
        steps = statistics.mean(outcome.steps for outcome in runs)
        reached = [steps for outcome in runs if (steps := outcome.steps_to(target, maximize)) is not None]
        middle = f"{statistics.median(reached):,.0f}" if reached else "–"
        row = [
            name,
            f"{statistics.mean(best):.4f} ({spread:.4f})",
            f"{steps:,.0f}",
            middle,
            f"{len(reached)} of {len(runs)}",
        ]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
