"""CPU time of a sweep over 6 checkpoints, beside one process per checkpoint that runs `transformers.Trainer.evaluate`.

    python benchmarks/sweep.py [--rounds 3] [--tunings lora,full]

Both score the same validation rows (the quickstart's reviews) in batches of the same size, with one thread, taking turns; CPU time is
user and system time of all their processes. `Trainer` pads each batch to its longest text, as its users have it.

    sweep        `sft-dist eval --force`, with neither a test split nor an export; it scores the untrained model, too
    Trainer      the sum over 6 processes
    rest         the same without the forward passes, which are measured by the model alone on each one's own batches
    one more     what another checkpoint adds to a sweep, divided by the time of the model alone on the sweep's batches

Exits with 1 when a goal is missed: Trainer's rest is at least 4 times the sweep's, and one more checkpoint costs at most 1.2.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "recipes/text-classification/quickstart.yaml"
NUM_CHECKPOINTS = 6
SETTINGS = {
    "lora": ["train.lr=1e-3"],
    "full": ["tuning={method: full}", "train.lr=5e-5"],
}
SHARED_SETTINGS = [
    f"train={{steps: {2 * NUM_CHECKPOINTS}, lr: 1e-3, global_batch: 32, save_every: 2 steps, eval_every: 12 steps, keep_last: {NUM_CHECKPOINTS}}}",
    "evaluate={metric: accuracy, report_on: [], export: none}",
    "resources.processes_per_node=1",
]
GOAL_REST, GOAL_ONE_MORE = 4.0, 1.2
COLUMNS = (
    "tuning",
    "sweep, s",
    "Trainer, s",
    "times less",
    "rest: sweep, s",
    "rest: Trainer, s",
    "times less",
    "one more",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tunings", default="lora,full")
    options = parser.parse_args()
    print(f"{NUM_CHECKPOINTS} checkpoints of one run, median of {options.rounds} rounds\n")
    for cells in (COLUMNS, ["---"] * len(COLUMNS)):
        print(f"| {' | '.join(cells)} |")
    missed = []
    for tuning in options.tunings.split(","):
        with tempfile.TemporaryDirectory() as folder:
            row = _medians(_rounds(tuning, Path(folder), options.rounds))
        cells = [
            f"{row[name]:.1f}" for name in ("sweep", "trainer", "ratio", "sweep_rest", "trainer_rest", "rest_ratio")
        ]
        print(f"| {' | '.join([tuning, *cells, format(row['one_more'], '.2f')])} |", flush=True)
        if row["rest_ratio"] < GOAL_REST:
            missed.append(f"{tuning}: rest")
        if row["one_more"] > GOAL_ONE_MORE:
            missed.append(f"{tuning}: one more checkpoint")
    for name in missed:
        print(f"goal missed: {name}")
    return int(bool(missed))


def _rounds(tuning: str, folder: Path, rounds: int) -> list[dict[str, float]]:
    settings = [*SHARED_SETTINGS, *SETTINGS[tuning]]
    _cpu_time(["-m", "sft_dist.train", QUICKSTART, *settings, "--runs", folder / "runs"])
    (run,) = (file.parent for file in folder.glob("runs/*/*/recipe.json"))
    _measure("rows", run, folder)
    return [_round(run, folder) for _ in range(rounds)]


def _round(run: Path, folder: Path) -> dict[str, float]:
    checkpoints = sorted(run.glob("checkpoints/step-*"))
    assert len(checkpoints) == NUM_CHECKPOINTS
    sweep = _cpu_time(["-m", "launch", "eval", run, "--force", "--runs", folder / "runs"])
    trainer = sum(_cpu_time([__file__, "--of", "trainer", path, folder]) for path in checkpoints)
    _require_equal_scores(run, folder)
    parts = _measure("parts", run, folder)
    # The sweep scores the untrained model, too.
    forward = (NUM_CHECKPOINTS + 1) * parts["forward"], NUM_CHECKPOINTS * parts["trainer_forward"]
    return {
        "sweep": sweep,
        "trainer": trainer,
        "ratio": trainer / sweep,
        "sweep_rest": sweep - forward[0],
        "trainer_rest": trainer - forward[1],
        "rest_ratio": (trainer - forward[1]) / (sweep - forward[0]),
        "one_more": parts["checkpoint"] / parts["forward"],
    }


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(values[name] for values in rounds) for name in rounds[0]}


def _require_equal_scores(run: Path, folder: Path) -> None:
    """Both must have done the same work."""
    for file in folder.glob("step-*.json"):
        accuracy = json.loads((run / "evaluation" / f"{file.stem}.validation.json").read_text())["scores"]["accuracy"]
        other = json.loads(file.read_text())["eval_accuracy"]
        if abs(accuracy - other) > 0.0026:  # of 400 rows, one may lie on the border
            raise SystemExit(f"{file.stem}: accuracy is {accuracy} in the sweep and {other} by Trainer")


def _cpu_time(arguments: list[Any]) -> float:
    """Seconds of a Python program and its subprocesses."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, *map(str, arguments)], env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{arguments}: exit code {done.returncode}\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _measure(function: str, run: Path, folder: Path) -> dict[str, float]:
    """In a process of its own, whose imports count nowhere."""
    _cpu_time([__file__, "--of", function, run, folder])
    values: dict[str, float] = json.loads((folder / f"{function}.json").read_text())
    return values


# ── in other processes ──────────────────────────────────────────────────────────────────────────────────────────────
def rows(run: Path, folder: Path) -> None:
    """Writes the run's validation rows as Trainer's users have them: a CSV file."""
    from sft_dist.data.prepare import prepare
    from sft_dist.run.folder import RunFolder
    from sft_dist.tasks import task_of

    recipe = RunFolder(run).recipe()
    task = task_of(recipe)
    split = prepare(recipe, task).splits["validation"]
    texts, labels = split.column("text"), split.column("label")
    _frame(texts, labels).to_csv(folder / "validation.csv", index=False)
    _write(folder / "rows.json", {"rows": len(texts)})


def _frame(texts: Any, labels: Any) -> Any:
    import pandas as pd

    return pd.DataFrame({"text": list(texts), "label": list(labels)})


def trainer(checkpoint: Path, folder: Path) -> None:
    """What the documentation of transformers shows for the evaluation of one model."""
    evaluator, examples = _trainer(checkpoint, folder)
    _write(folder / f"{checkpoint.name}.json", evaluator.evaluate(examples))


def _trainer(checkpoint: Path, folder: Path) -> tuple[Any, Any]:
    import numpy as np
    from datasets import load_dataset
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

    recipe = json.loads((checkpoint.parents[1] / "recipe.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "model")
    table = load_dataset(
        "csv", data_files=str(folder / "validation.csv"), split="train", cache_dir=str(folder / "datasets")
    )
    examples = table.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=recipe["data"]["max_length"]), batched=True
    )
    arguments = TrainingArguments(
        str(folder / "trainer"),
        per_device_eval_batch_size=recipe["evaluate"]["micro_batch"],
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    return Trainer(
        model=_model(checkpoint / "model"),
        args=arguments,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=lambda outputs: {"accuracy": float(np.mean(outputs[0].argmax(-1) == outputs[1]))},
    ), examples


def _model(folder: Path) -> Any:
    if (folder / "adapter_config.json").is_file():
        from peft import AutoPeftModelForSequenceClassification

        return AutoPeftModelForSequenceClassification.from_pretrained(str(folder))
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(str(folder))


def parts(run: Path, folder: Path) -> None:
    """Seconds of a further checkpoint of a sweep, and of the model alone on the batches of the sweep and of Trainer."""
    from sft_dist.evaluation.evaluator import Evaluator
    from sft_dist.evaluation.sweep import ValidationScores
    from sft_dist.run.folder import RunFolder

    run_folder = RunFolder(run)
    ends: list[float] = []
    validation = ValidationScores(Evaluator(), {run_folder: run_folder.recipe()}, force=True)
    report = validation._report
    validation._report = lambda *arguments: (report(*arguments), ends.append(time.process_time()))  # type: ignore[method-assign]
    validation.update()
    batches, model = _trainer_batches(sorted(run.glob("checkpoints/step-*"))[-1], folder)
    values = {
        "checkpoint": statistics.median(end - start for start, end in itertools.pairwise(ends)),
        "forward": _seconds(model, _sweep_batches(run_folder.recipe())),
        "trainer_forward": _seconds(model, batches),
    }
    _write(folder / "parts.json", values)


def _sweep_batches(recipe: Any) -> list[dict[str, Any]]:
    from sft_dist.data.encode import collate
    from sft_dist.data.prepare import prepare
    from sft_dist.evaluation.inference import length_sorted_batches
    from sft_dist.tasks import task_of
    from sft_dist.tasks.models import load_processor

    task = task_of(recipe)
    processor = load_processor(recipe, task)
    examples = prepare(recipe, task, processor).examples["validation"]
    order = length_sorted_batches(examples.lengths, recipe.evaluate.micro_batch)
    return [collate(task, examples, indices, processor)[0] for indices in order]


def _trainer_batches(checkpoint: Path, folder: Path) -> tuple[list[dict[str, Any]], Any]:
    evaluator, examples = _trainer(checkpoint, folder)
    batches = [dict(batch) for batch in evaluator.get_eval_dataloader(examples)]
    for batch in batches:
        batch.pop("labels")
    return batches, evaluator.model.eval()


def _seconds(model: Any, batches: list[dict[str, Any]]) -> float:
    """Median of three passes."""
    import torch

    seconds = []
    with torch.no_grad():
        for _ in range(3):
            started = time.process_time()
            for batch in batches:
                model(**batch)
            seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def _write(file: Path, values: Any) -> None:
    file.write_text(json.dumps(values))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--of"]:
        {"rows": rows, "trainer": trainer, "parts": parts}[sys.argv[2]](Path(sys.argv[3]), Path(sys.argv[4]))
        sys.exit(0)
    sys.exit(main())
