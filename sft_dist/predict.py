"""`python -m sft_dist.predict MODEL [FILE|-]`: label the lines of a text file, or the rows of a csv, tsv or jsonl."""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sft_dist.export import ABOUT
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.run_folder import RunFolder, read_json
from sft_dist.recipe.schema import Recipe

BATCHES_AT_ONCE = 16  # texts read ahead, so that a batch holds similar lengths: this many micro-batches


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sft_dist.predict",
        description="Label texts with an exported model.",
        epilog="example: echo 'a wonderful film' | python -m sft_dist.predict runs/quickstart/0a1b2c3d4e",
    )
    parser.add_argument("model", type=Path, help="an exported folder, or a run folder whose winner was exported")
    parser.add_argument(
        "file", nargs="?", default="-", help="txt (a text a line), csv, tsv or jsonl; - is standard input"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with all probabilities")
    options = parser.parse_args(arguments)
    try:
        for line in predict(options.model, options.file, options.json):
            print(line, flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # `predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def predict(model_folder: Path, file: str, as_json: bool) -> Iterator[str]:
    """Output lines in the order of the input. Raises UserError."""
    folder, about = _find(model_folder)
    recipe = Recipe.model_validate(about["recipe"])
    roles = _input_roles(recipe)
    texts = read_texts(file, recipe, roles)
    first = next(texts, None)
    if first is None:
        return

    import numpy as np
    import torch
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    from sft_dist.data.prepare import Rows, clean_text
    from sft_dist.inference import assemble, autocast, forward, length_sorted_batches
    from sft_dist.models import build_model
    from sft_dist.quiet import quiet_libraries
    from sft_dist.tasks import task_of
    from sft_dist.tuning import load_weights

    quiet_libraries()
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    task = task_of(recipe)
    task.labels = about["labels"]
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if about["form"] == "adapter":
            model = build_model(recipe, task, tokenizer)
            load_weights(model, folder)
        else:
            model = task.build_model(str(folder), None, {})
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be loaded: {error}; export it again") from error
    model.to(device)
    rest = itertools.chain([first], texts)
    size = recipe.evaluate.micro_batch
    while chunk := list(itertools.islice(rest, size * BATCHES_AT_ONCE)):
        fields = {role: [clean_text(row[role], recipe.data.clean) for row in chunk] for role in roles}
        rows = Rows(np.arange(len(chunk)), fields, [])
        examples = task.encode_inputs(rows, tokenizer)
        batches = length_sorted_batches(examples.lengths, size)
        parts = forward(model, task, tokenizer, examples, batches, device, autocast(device, recipe.train.precision))
        for row, said in zip(chunk, task.describe(assemble(parts, len(chunk))), strict=True):
            yield json.dumps({**row, **said}, ensure_ascii=False) if as_json else _plain(row, said)


def read_texts(file: str, recipe: Recipe, roles: list[str]) -> Iterator[dict[str, str]]:
    """Role -> text for each line or row. Raises UserError with the line number."""
    path = Path(file)
    suffix = path.suffix.lower()
    try:
        if file == "-":
            yield from _lines(sys.stdin, "standard input", roles)
            return
        # Spreadsheets begin their files with a byte-order mark, which is no part of the first column's name.
        with path.open(encoding="utf-8-sig", newline="" if suffix in (".csv", ".tsv") else None) as stream:
            if suffix in (".csv", ".tsv"):
                rows: Iterator[Any] = csv.DictReader(stream, delimiter="\t" if suffix == ".tsv" else ",")
                yield from (_pick(row, recipe, roles, f"{file}: row {n}") for n, row in enumerate(rows, 1))
            elif suffix == ".jsonl":
                for number, line in enumerate(stream, 1):
                    if line.strip():
                        yield _pick(_json(line, f"{file}:{number}"), recipe, roles, f"{file}:{number}")
            else:
                yield from _lines(stream, file, roles)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error
    except csv.Error as error:
        raise UserError(f"{file}: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 ({error.reason} at byte {error.start})") from error


def _lines(stream: IO[str], name: str, roles: list[str]) -> Iterator[dict[str, str]]:
    for number, line in enumerate(stream, 1):
        parts = line.rstrip("\n").split("\t") if len(roles) > 1 else [line.rstrip("\n")]
        if len(parts) != len(roles):
            raise UserError(f"{name}:{number}: {len(roles)} texts separated by a tab are needed ({', '.join(roles)})")
        yield dict(zip(roles, parts, strict=True))


def _pick(row: dict[str, Any], recipe: Recipe, roles: list[str], where: str) -> dict[str, str]:
    names = {role: recipe.data.columns.get(role, role) for role in roles}
    if missing := [name for name in names.values() if row.get(name) is None]:
        raise UserError(Problem(f"{where}: no column {missing[0]!r}", valid=tuple(str(name) for name in row)))
    return {role: str(row[name]) for role, name in names.items()}


def _json(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: a JSON object is needed")
    return row


def _find(model: Path) -> tuple[Path, dict[str, Any]]:
    for folder in (model, RunFolder(model).export):
        about = read_json(folder / ABOUT)
        if about:
            return folder, about
    hint = "run `sft-dist eval` on it first" if RunFolder(model).recipe_file.is_file() else "it has no " + ABOUT
    raise UserError(f"{model}: not an exported model; {hint}")


def _input_roles(recipe: Recipe) -> list[str]:
    from sft_dist.recipe.schema import TASK_COLUMNS

    roles = [role for role in TASK_COLUMNS[recipe.task.type] if role != "label"]
    return [role for role in roles if role == roles[0] or role in recipe.data.columns]


def _plain(row: dict[str, str], said: dict[str, Any]) -> str:
    shown = [
        f"{v:.4f}" if isinstance(v, float) else ",".join(v) if isinstance(v, list) else v
        for k, v in said.items()
        if k != "probabilities"
    ]
    return "\t".join([*map(str, shown), *row.values()])


if __name__ == "__main__":
    sys.exit(main())
