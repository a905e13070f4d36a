"""Runs with causes that are known because they were made, for the rules of `sft-dist diagnose`.

    python benchmarks/diagnose_gallery.py train [--folder DIR] [--only TEXT] [--minutes N]
    python benchmarks/diagnose_gallery.py record [--folder DIR]
    python benchmarks/diagnose_gallery.py score

Three families (a text encoder, a language model, a vision transformer), each on two data sets: thresholds are tuned on the runs of the
first, and reported on those of the second, with other seeds. `train` makes the runs in an order in which every prefix covers the causes
evenly; those that DIR has already are kept. `record` puts what the rules read of them into benchmarks/gallery/. `score` needs those
records alone, and prints the table of docs/decisions/0020-diagnosis.md; --verbose names the misses.

The runs are trained by the loop in gallery_training.py and not by `sft-dist run`, which takes 5 to 20 s of processor time for each.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import itertools
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from launch.diagnose.diagnosis import Diagnosis, diagnose  # noqa: E402  (the repository's root is on the path now)
from launch.diagnose.evidence import Evidence  # noqa: E402

RECORDS = ROOT / "benchmarks" / "gallery"
SPLITS = {"train": 400, "validation": 100, "test": 200}
HALVES = {"tuning": (1, 2, 3), "held-out": (11, 12, 13)}  # seeds
NUM_FAULT_SEEDS = 2  # of the three; the third is of healthy runs alone

Row = dict[str, Any]
Rows = dict[str, list[Row]]  # by split
Settings = dict[str, Any]  # key path -> value


# ── data ────────────────────────────────────────────────────────────────────────────────────────────────────────────
WORDS = {
    "bad": ("awful", "dull", "poor", "boring"),
    "good": ("great", "lovely", "fine", "superb"),
    "mixed": ("uneven", "long", "odd", "slow"),
}
FILLER = ("the", "film", "was", "and", "story", "actor", "with", "of", "this", "long")
MAX_VERSE = 110  # characters
AMBIGUOUS_SHARE = 0.08  # rows whose words say nothing of their class


def reviews(rng: random.Random) -> list[Row]:
    """Made sentences of three classes."""
    rows = []
    for number in range(900):
        label = rng.choice(list(WORDS))
        telling = FILLER if rng.random() < AMBIGUOUS_SHARE else WORDS[label]
        words = [rng.choice(telling), rng.choice(telling), *rng.choices(FILLER, k=rng.randint(4, 20)), f"n{number}"]
        rng.shuffle(words)
        rows.append({"text": " ".join(words), "label": label})
    return rows


def books(rng: random.Random) -> list[Row]:
    """Verses of three books, so short that few are cut at the family's length. Of those that begin alike, one."""
    rows = [row for row in _verses() if row["book"] in ("19", "2", "44") and len(row["source"]) < MAX_VERSE]
    different = {tuple(row["source"].casefold().split()[:4]): row for row in rows}.values()
    return _shuffled(rng, ({"text": row["source"], "label": f"book {row['book']}"} for row in different))


def instructions(rng: random.Random) -> list[Row]:
    """Those with a short question and a short answer."""
    rows = json.loads((_sample("alpaca") / "alpaca.json").read_text(encoding="utf-8"))
    short = (row for row in rows if len(row["instruction"] + row["input"]) < 140 and 60 < len(row["output"]) < 400)
    return _shuffled(rng, {(row["instruction"], row["input"]): row for row in short}.values())


def translations(rng: random.Random) -> list[Row]:
    """Short verses in French."""
    rows = (
        {"instruction": "French:", "input": row["source"], "output": row["target"]}
        for row in _verses()
        if 40 < len(row["source"]) < 90
    )
    return _shuffled(rng, {row["input"]: row for row in rows}.values())


def clothes(rng: random.Random) -> list[Row]:
    from pyarrow import parquet

    rows = parquet.read_table(_sample("fashion-mnist") / "train.parquet").slice(0, 3000).to_pylist()
    return _shuffled(rng, (row for row in rows if row["label"] in ("trouser", "dress", "sneaker", "bag")))


def digits(rng: random.Random) -> list[Row]:
    """Four of scikit-learn's handwritten digits, enlarged."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (Image.fromarray((array * 15).astype(np.uint8)).resize((28, 28)) for array in data.images)
    return _shuffled(
        rng,
        (
            {"image": _png(image), "label": str(label)}
            for image, label in zip(images, data.target, strict=False)
            if label in (0, 1, 4, 7)
        ),
    )


def _sample(name: str) -> Path:
    from samples.fetch import need

    return Path(need(name))


def _verses() -> Iterator[Row]:
    with (_sample("verses") / "train.csv").open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _shuffled(rng: random.Random, rows: Any) -> list[Row]:
    shuffled = list(rows)
    rng.shuffle(shuffled)
    return shuffled


def _png(image: Any) -> Row:
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": "image.png"}


# ── families ────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Family:
    """A kind of model and its two data sets, with the settings of a healthy run."""

    task: str
    model: str
    data: Mapping[str, Callable[[random.Random], list[Row]]]  # half -> rows
    lr: float
    batch: int
    steps: int
    max_length: int = 64
    splits: Mapping[str, int] = field(default_factory=lambda: SPLITS)  # rows


FAMILIES = {
    "text": Family("text-classification", "bert", {"tuning": reviews, "held-out": books}, 3e-3, 16, 80, 32),
    "chat": Family(
        "instruction-tuning",
        "llama",
        {"tuning": instructions, "held-out": translations},
        5e-3,
        4,
        60,
        192,
        {"train": 160, "validation": 40, "test": 60},
    ),
    "image": Family("image-classification", "vit", {"tuning": clothes, "held-out": digits}, 5e-3, 16, 80),
}


# ── causes ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Fault:
    """How a cause is made: other settings than a healthy run's, and other rows."""

    settings: Callable[[Family, int], Settings] = lambda family, variant: {}
    rows: Callable[[Rows, random.Random], Rows] = lambda rows, rng: rows
    families: tuple[str, ...] = ("text", "chat", "image")


def few_rows(rows: Rows, rng: random.Random) -> Rows:
    return {**rows, "train": rows["train"][:16]}


def other_labels(share: float) -> Callable[[Rows, random.Random], Rows]:
    def change(rows: Rows, rng: random.Random) -> Rows:
        labels = sorted({row["label"] for row in rows["train"]})
        return {
            split: [
                {**row, "label": rng.choice([label for label in labels if label != row["label"]])}
                if rng.random() < share
                else row
                for row in of_split
            ]
            for split, of_split in rows.items()
        }

    return change


def permuted_labels(rows: Rows, rng: random.Random) -> Rows:
    permuted = {}
    for split, of_split in rows.items():
        labels = [row["label"] for row in of_split]
        rng.shuffle(labels)
        permuted[split] = [{**row, "label": label} for row, label in zip(of_split, labels, strict=True)]
    return permuted


def train_rows_in_validation(rows: Rows, rng: random.Random) -> Rows:
    return {**rows, "train": rows["train"][:160], "validation": rows["train"][: len(rows["validation"])]}


def rare_class(rows: Rows, rng: random.Random) -> Rows:
    rare = min(row["label"] for row in rows["train"])
    limits = {"train": 4, "validation": 12, "test": 12}
    result = {}
    for split, of_split in rows.items():
        of_class = [row for row in of_split if row["label"] == rare][: limits[split]]
        result[split] = [row for row in of_split if row["label"] != rare] + of_class
    return result


def large_images(rows: Rows, rng: random.Random) -> Rows:
    from PIL import Image

    def enlarged(row: Row) -> Row:
        with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
            return {**row, "image": _png(image.convert("RGB").resize((900, 900), Image.Resampling.BICUBIC))}

    return {"train": [enlarged(row) for row in rows["train"][:120]], **{
        split: [enlarged(row) for row in rows[split][:30]] for split in ("validation", "test")
    }}  # fmt: skip


def _truncated(family: Family, variant: int) -> Settings:
    return {"data.max_length": (6 if family.task == "text-classification" else 60) - 2 * variant}


def _schedule(family: Family, variant: int) -> Settings:
    """A warm-up that is longer than the run; a rate that is 0 after a third of it."""
    return (
        {"train.warmup": f"{family.steps * 6} steps"}
        if variant == 0
        else {"train.schedule": {"name": "polynomial", "power": 14.0, "lr_end": 0.0}}
    )


HEAD = {"tuning": {"method": "freeze", "train_last_layers": 0}}

FAULTS: dict[str, Fault] = {
    "healthy": Fault(),
    "over-fit": Fault(lambda family, variant: {"train.steps": 120}, few_rows),
    "under-fit": Fault(lambda family, variant: {"train.steps": 12 + 4 * variant, "train.save_every": "3 steps", "train.log_every": 1}),
    "lr-too-high": Fault(lambda family, variant: {"train.lr": family.lr * (30 + 30 * variant)}),
    "lr-too-low": Fault(lambda family, variant: {"train.lr": family.lr / (200 + 200 * variant)}),
    "plateau": Fault(lambda family, variant: {**HEAD, "train.lr": family.lr * 10, "train.steps": 120, "train.save_every": "20 steps"}),
    "diverged": Fault(
        lambda family, variant: {"train.optimizer": {"name": "sgd", "momentum": 0.9}, "train.lr": 30.0 * 10**variant, "train.clip_norm": None}
    ),
    "label-noise": Fault(rows=other_labels(0.08), families=("text", "image")),
    "wrong-labels": Fault(rows=permuted_labels, families=("text", "image")),
    "leak": Fault(lambda family, variant: {"train.steps": 120, "train.save_every": "20 steps"}, train_rows_in_validation),
    "dead-class": Fault(lambda family, variant: {"train.steps": 120}, rare_class, families=("text", "image")),
    "truncation": Fault(_truncated, families=("text", "chat")),
    "loader-bound": Fault(lambda family, variant: {"train.steps": 30, "train.save_every": "10 steps", "train.log_every": 2}, large_images, ("image",)),
    "bad-schedule": Fault(_schedule),
}  # fmt: skip
DECAY = 0.02  # of the weights, a setting without effect at this length: its gain is less than that of another seed


@dataclass(frozen=True)
class Case:
    """One run of the gallery."""

    half: str
    family: str
    cause: str
    seed: int
    variant: int
    settings: Settings = field(default_factory=dict)

    @property
    def name(self) -> str:
        suffix = "-decay" if self.settings else ""
        return f"{self.half}-{self.family}-{self.cause}{suffix}-{self.seed}"


def cases() -> list[Case]:
    """Seed by seed, and both halves side by side, so that each prefix covers the causes evenly."""
    result = []
    for variant, family in itertools.product(range(3), ("text", "image", "chat")):
        for cause, fault in FAULTS.items():
            if family in fault.families and (cause == "healthy" or variant < NUM_FAULT_SEEDS):
                result += [Case(half, family, cause, seeds[variant], variant) for half, seeds in HALVES.items()]
    decay = {"train.optimizer": {"name": "adamw", "weight_decay": DECAY}}
    return result + [replace(case, settings=decay) for case in result if case.cause == "healthy"]


def recipe_of(case: Case) -> dict[str, Any]:
    family = FAMILIES[case.family]
    recipe: dict[str, Any] = {
        "name": case.name,
        "task": family.task,
        "model": {"path": f"./{family.model}"},
        "data": {"source": "./rows.jsonl", "max_length": family.max_length},
        "tuning": "full",
        "train": {
            "steps": family.steps, "global_batch": family.batch, "lr": family.lr, "warmup": "10%", "log_every": 2,
            "save_every": f"{family.steps // 8} steps", "seed": case.seed,
        },
    }  # fmt: skip
    return with_settings(recipe, {**FAULTS[case.cause].settings(family, case.variant), **case.settings})


def with_settings(recipe: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Returns the recipe with settings by key path."""
    changed = json.loads(json.dumps(recipe))
    for key, value in settings.items():
        *sections, name = key.split(".")
        inner = changed
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return changed


def rows_of(case: Case) -> Rows:
    """Each seed has rows of its own."""
    family, fault = FAMILIES[case.family], FAULTS[case.cause]
    rng = random.Random(f"{case.half}-{case.family}-{case.seed}")
    rows = iter(family.data[case.half](rng))
    splits: Rows = {
        split: [row for row, _ in zip(rows, range(count), strict=False)] for split, count in family.splits.items()
    }
    return fault.rows(splits, rng)


# ── training ────────────────────────────────────────────────────────────────────────────────────────────────────────
def train_all(folder: Path, only: str, minutes: float) -> None:
    from benchmarks.gallery_training import train_run

    deadline = time.monotonic() + 60 * minutes
    folder.mkdir(parents=True, exist_ok=True)
    selected = [case for case in cases() if only in case.name]
    for number, case in enumerate(selected, 1):
        if time.monotonic() > deadline:
            print(f"{number - 1} of {len(selected)} runs in {minutes:g} minutes", flush=True)
            return
        file = folder / f"{case.name}.json"
        if not file.exists():
            started, used = time.monotonic(), time.process_time()
            evidence = train_run(case.name, recipe_of(case), rows_of(case))
            file.write_text(json.dumps(rounded(evidence.to_json())))
            seconds = f"{time.monotonic() - started:.1f} s, {time.process_time() - used:.1f} s of processor time"
            print(f"{number}/{len(selected)} {case.name}: {evidence.state}, {seconds}", flush=True)


def rounded(value: Any) -> Any:
    """Returns JSON-like values with five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def record_all(folder: Path) -> None:
    """Writes the records of each half into one file."""
    RECORDS.mkdir(exist_ok=True)
    for half in HALVES:
        records = [
            {
                "family": case.family,
                "cause": case.cause,
                "group": "decay" if case.settings else case.cause,
                "evidence": json.loads(file.read_text()),
            }
            for case in cases()
            if case.half == half and (file := folder / f"{case.name}.json").exists()
        ]
        content = json.dumps(records, separators=(",", ":")).encode()
        (RECORDS / f"{half}.json.gz").write_bytes(gzip.compress(content, 9, mtime=0))
        print(f"{half}: {len(records)} runs")


# ── scores ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Result:
    """What the rules say about a run whose cause is known."""

    family: str
    cause: str
    diagnosis: Diagnosis

    @property
    def named(self) -> str:
        """Returns the first cause that the diagnosis names."""
        findings = self.diagnosis.findings
        return findings[0].cause if findings else "abstains" if self.diagnosis.is_abstention else "silent"


def read_results(half: str) -> list[Result]:
    records = json.loads(gzip.decompress((RECORDS / f"{half}.json.gz").read_bytes()))
    return [
        Result(record["family"], record["cause"], diagnose(Evidence.from_json(record["evidence"])))
        for record in records
    ]


@dataclass(frozen=True)
class Score:
    """Shares of a half of the gallery."""

    num_faulty: int
    num_named: int  # the cause is named first
    num_listed: int  # the cause is among the findings
    num_silent: int  # faulty runs without a finding
    num_healthy: int
    num_alarms: int  # healthy runs with a finding


def score(results: Sequence[Result]) -> Score:
    faulty = [result for result in results if result.cause != "healthy"]
    healthy = [result for result in results if result.cause == "healthy"]
    return Score(
        num_faulty=len(faulty),
        num_named=sum(result.named == result.cause for result in faulty),
        num_listed=sum(result.cause in [finding.cause for finding in result.diagnosis.findings] for result in faulty),
        num_silent=sum(not result.diagnosis.findings for result in faulty),
        num_healthy=len(healthy),
        num_alarms=sum(bool(result.diagnosis.findings) for result in healthy),
    )


def confusion_table(results: Sequence[Result]) -> str:
    """Returns Markdown: cause, runs, and what was named first."""
    lines = ["| cause | runs | named first | otherwise |", "|---|---|---|---|"]
    for cause in FAULTS:
        named = Counter(result.named for result in results if result.cause == cause)
        right = named.pop("silent" if cause == "healthy" else cause, 0)
        texts = ", ".join(f"{name} {count}" for name, count in named.most_common())
        lines.append(f"| {cause} | {right + sum(named.values())} | {right} | {texts} |")
    return "\n".join(lines)


def print_scores(verbose: bool) -> None:
    for half in HALVES:
        results = read_results(half)
        print(f"## {half}\n\n{confusion_table(results)}\n\n{score(results)}\n")
        for result in results if verbose else ():
            if result.named != result.cause and (result.cause, result.named) != ("healthy", "silent"):
                print(f"{result.diagnosis.evidence.run}: {result.named}")
                for finding in result.diagnosis.findings:
                    print(f"    {finding.cause} {finding.confidence}: {finding.message}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["train", "record", "score"])
    parser.add_argument("--folder", type=Path, default=Path("gallery-runs"), metavar="DIR")
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--minutes", type=float, default=1e9, metavar="N")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    if options.action == "train":
        train_all(options.folder, options.only, options.minutes)
    elif options.action == "record":
        record_all(options.folder)
    else:
        print_scores(options.verbose)


if __name__ == "__main__":
    main()
