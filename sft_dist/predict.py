"""`python -m sft_dist.predict MODEL [FILE ...]`: what a model says about the lines of text files, the rows of tables, or
images and recordings."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from sft_dist.export import ABOUT
from sft_dist.recipe.entry_points import require_plugins
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import irregular, read_json
from sft_dist.recipe.model_files import folder_problems
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.trust import NO_TRUST, Trust, add_options, require_trust, trust_in
from sft_dist.run.folder import RunFolder
from sft_dist.run.manifest import RECIPE, require_unchanged

TABLE_SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "json"}
BATCHES_AT_ONCE = 16  # texts read ahead, so that a batch holds similar lengths: this many micro-batches


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sft_dist.predict",
        description="Print an exported model's predictions for texts, images or recordings.",
        epilog="example: echo 'a wonderful film' | python -m sft_dist.predict runs/quickstart/0a1b2c3d4e",
    )
    parser.add_argument("model", type=Path, help="an exported folder, or a run folder whose winner was exported")
    parser.add_argument(
        "files",
        nargs="*",
        default=["-"],
        help="txt (a text a line), csv, tsv or jsonl; for images and recordings the files themselves, or a table of "
        "their paths; - is standard input: texts, or rows of jsonl",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with the complete prediction")
    add_options(parser)
    options = parser.parse_args(arguments)
    try:
        for line in predict(options.model, options.files, options.json, trust_in(options)):
            print(line, flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # `predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def predict(model_folder: Path, files: list[str], as_json: bool, trust: Trust = NO_TRUST) -> Iterator[str]:
    """Output lines in the order of the input. Raises UserError."""
    folder, about = _find(model_folder)
    require_plugins(str(folder), about.get("plugins", ()))
    recipe = _recipe_in(folder / ABOUT, about)
    require_trust(recipe, trust, folder / ABOUT)

    # Imported late: invalid arguments are refused before torch is loaded.
    import torch
    from datasets import Dataset
    from safetensors import SafetensorError

    from sft_dist.data.clean import clean_text
    from sft_dist.data.encode import encode
    from sft_dist.data.rows import ROW, Examples
    from sft_dist.engines.precision import autocast
    from sft_dist.evaluation.inference import assemble, forward, length_sorted_batches
    from sft_dist.logging_setup import quiet_libraries
    from sft_dist.tasks import task_of
    from sft_dist.tasks.models import build_model
    from sft_dist.tuning import load_weights

    quiet_libraries()
    if problems := folder_problems(folder):
        raise UserError(problems)
    task = task_of(recipe)
    task.labels = about["labels"]
    roles = [role for role in task.input_roles if role == task.input_roles[0] or role in recipe.data.columns]
    question_of = task.question_of if set(recipe.task.columns.values()) == {"if present"} else None
    inputs = ((file, row) for file in files for row in read_inputs(file, recipe, roles, question_of))
    first = next(inputs, None)
    if first is None:
        return
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        processor = task.load_processor(str(folder), trust_remote_code=False)
        if about["form"] == "adapter":
            model = build_model(recipe, task, processor)
            load_weights(model, folder)
        else:
            model = task.build_model(str(folder), None, {}, processor)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be loaded: {error}; export it again") from error
    model.to(device)
    all_inputs = itertools.chain([first], inputs)
    size = recipe.evaluate.micro_batch
    while chunk := list(itertools.islice(all_inputs, size * BATCHES_AT_ONCE)):
        rows = [
            task.from_input(
                {
                    role: _media(text, file, recipe)
                    if role in recipe.task.media
                    else clean_text(text, recipe.data.clean, role)
                    for role, text in row.items()
                }
            )
            for file, row in chunk
        ]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        table = Dataset.from_dict(encode(task, {**columns, ROW: list(range(len(rows)))}, processor, "input"))
        examples = Examples(table.add_column(ROW, list(range(len(rows)))), "input")
        batches = length_sorted_batches(examples.lengths, size)
        casting = autocast(device, recipe.train.precision)
        parts = forward(model, task, None, processor, examples, batches, device, casting)
        predictions, _ = assemble(parts, len(chunk))
        for (_, row), description in zip(chunk, task.describe(predictions, processor), strict=True):
            yield json.dumps({**row, **description}, ensure_ascii=False) if as_json else _plain(row, description)


def _media(path: str, file: str, recipe: Recipe) -> dict[str, Any]:
    """The image or recording that the command line, standard input or a table `file` names. Raises UserError."""
    # Imported late: invalid arguments are refused before torch is loaded.
    from sft_dist.data.media import MediaError, accepted, is_url, require_accepted

    if file in (path, "-") and not is_url(path):  # the user's own words, not a table's
        return {"path": os.path.abspath(path), "bytes": None}
    folders = (os.path.dirname(os.path.abspath(file)), os.getcwd())
    value = {"path": accepted(path, folders, recipe.data.allow_urls), "bytes": None}
    try:
        require_accepted(value)
    except MediaError as error:
        raise UserError(f"{file}: {error}") from None
    return value


QuestionOf = Callable[[dict[str, Any], int], dict[str, str]]


def read_inputs(
    file: str,
    recipe: Recipe,
    roles: list[str],
    question_of: QuestionOf | None = None,  # of tasks whose columns are all optional
) -> Iterator[dict[str, str]]:
    """Role -> text, or path of a image or recording, of each line or row. Raises UserError with the line number."""
    path = Path(file)
    suffix = path.suffix.lower()
    try:
        if roles[0] in recipe.task.media and suffix not in (*TABLE_SUFFIXES, ".txt", "") and file != "-":
            if not path.is_file():
                raise UserError(f"{file}: no such file")
            yield {roles[0]: file}
            return
        if file == "-":
            lines = iter(sys.stdin)
            first = next(lines, None)
            lines = lines if first is None else itertools.chain([first], lines)
            if first is not None and _is_row(first, recipe, roles, question_of is not None):
                for number, row in _json_lines(lines):
                    yield _pick(row, recipe, roles, f"standard input:{number}", number, question_of)
            else:
                yield from _lines(lines, "standard input", roles)
            return
        if suffix in TABLE_SUFFIXES:
            for number, row in enumerate(_rows(file, TABLE_SUFFIXES[suffix]), 1):
                yield _pick(row, recipe, roles, f"{file}: row {number}", number, question_of)
            return
        if (kind := irregular(path)) and kind != "a named pipe":  # `predict MODEL <(command)` is one
            raise UserError(f"{file}: is {kind}, not a file")
        with path.open(encoding="utf-8-sig") as stream:
            yield from _lines(stream, file, roles)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 ({error.reason} at byte {error.start})") from error


def _rows(file: str, name: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of a table as training reads them. Raises UserError with the line of a fault."""
    # Imported late: invalid arguments are refused before torch is loaded.
    from sft_dist.data.formats.faults import fault_in
    from sft_dist.data.formats.tables import read_table

    if not Path(file).is_file():
        raise UserError(f"{file}: no such file")
    if fault := fault_in(name, [file]):
        raise UserError(fault)
    yield from read_table(name, [file], streaming=True)


def _is_row(line: str, recipe: Recipe, roles: list[str], is_conversation: bool) -> bool:
    """Whether a line is an object with the columns that are read, and not a text."""
    try:
        row = json.loads(line)
    except ValueError:
        return False
    names = {recipe.data.columns.get(role, role) for role in roles}
    return isinstance(row, dict) and (names <= set(row) or (is_conversation and "messages" in row))


def _json_lines(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    # Imported late: a folder without a model is refused before the readers are loaded.
    from sft_dist.data.formats.json_rows import row_of_line

    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = row_of_line(line, f"standard input:{number}")
        except json.JSONDecodeError as error:
            raise UserError(f"standard input:{number}: not JSON ({error})") from None
        except ValueError as error:
            raise UserError(str(error)) from None
        yield number, row


def _lines(stream: Iterable[str], name: str, roles: list[str]) -> Iterator[dict[str, str]]:
    for number, line in enumerate(stream, 1):
        parts = line.rstrip("\n").split("\t") if len(roles) > 1 else [line.rstrip("\n")]
        if len(parts) != len(roles):
            raise UserError(f"{name}:{number}: {len(roles)} texts separated by a tab are needed ({', '.join(roles)})")
        yield dict(zip(roles, parts, strict=True))


def _pick(
    row: dict[str, Any], recipe: Recipe, roles: list[str], source: str, number: int, question_of: QuestionOf | None
) -> dict[str, str]:
    mapped = recipe.data.columns
    by_role = {role: row[mapped.get(role, role)] for role in recipe.task.columns if mapped.get(role, role) in row}
    if question_of is not None and by_role:
        return question_of(by_role, number)
    names = {role: recipe.data.columns.get(role, role) for role in roles}
    if missing := [name for name in names.values() if name not in row]:
        raise UserError(Problem(f"{source}: no column {missing[0]!r}", valid=tuple(str(name) for name in row)))
    return {role: _text(row[name]) for role, name in names.items()}


def _text(value: Any) -> str:
    """Lists and objects as JSON: a conversation, an entity, a box. What is missing is an empty text."""
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)


def _find(model: Path) -> tuple[Path, dict[str, Any]]:
    for folder in (model, RunFolder(model).export):
        about = read_json(folder / ABOUT)
        if about:
            if folder != model:
                require_unchanged(model, RECIPE)
            return folder, about
    hint = "run `sft-dist eval` on it first" if RunFolder(model).recipe_file.is_file() else "it has no " + ABOUT
    raise UserError(f"{model}: not an exported model; {hint}")


def _recipe_in(file: Path, about: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(about["recipe"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as an exported model's: {error}") from None


DETAILS = ("probabilities", "masks")  # too long for a line that people read


def _plain(row: dict[str, str], description: dict[str, Any]) -> str:
    return "\t".join(
        [*(_plain_value(value) for key, value in description.items() if key not in DETAILS), *row.values()]
    )


def _plain_value(value: Any) -> str:
    """Classes as `a,b`; several boxes as `label=cat score=0.9000 box=1.0,2.0,3.0,4.0; label=...`."""
    match value:
        case float():
            return f"{value:.4f}"
        case dict():
            return " ".join(
                f"{key}={','.join(map(str, entry)) if isinstance(entry, list) else _plain_value(entry)}"
                for key, entry in value.items()
            )
        case list():
            return ("; " if value and isinstance(value[0], dict) else ",").join(map(_plain_value, value))
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
