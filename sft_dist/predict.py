"""`python -m sft_dist.predict MODEL [FILE ...]`: what a model says about the lines of text files, the rows of tables, or
images and recordings."""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_dist.evaluation.inputs import FORMATS, Input, InputReader
from sft_dist.evaluation.outputs import TABLES as OUTPUT_TABLES
from sft_dist.evaluation.outputs import Prediction, json_line, plain_line, table_lines
from sft_dist.export import ABOUT
from sft_dist.recipe.entry_points import require_plugins
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import read_json
from sft_dist.recipe.model_files import folder_problems
from sft_dist.recipe.schema import Recipe
from sft_dist.recipe.trust import NO_TRUST, Trust, add_options, require_trust, trust_in
from sft_dist.run.failures import DataError, is_out_of_memory
from sft_dist.run.folder import RunFolder
from sft_dist.run.manifest import RECIPE, require_unchanged

if TYPE_CHECKING:
    from sft_dist.tasks.base import Task

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
        help="txt (a text a line), csv, tsv, jsonl, parquet or arrow; for images and recordings the files themselves, or a table "
        "of their paths; - is standard input",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with the complete prediction")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="",
        help="format of the files (by their suffixes, or the first line of standard input)",
    )
    parser.add_argument(
        "--id", default="", metavar="COLUMN", dest="id_column", help="column of the tables to take along"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="file to write: csv, tsv, jsonl, or lines of text"
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="skip rows that cannot be read, instead of exit code 2 at the end"
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    bad: list[Prediction] = []
    try:
        _require_output(options.output, options.files, options.json)
        predictions = predict(options.model, options.files, trust_in(options), options.format, options.id_column)
        lines = _lines(_reported(predictions, bad, options.skip_bad), options.output, options.json)
        if options.output is None:
            for line in lines:
                print(line, flush=True)
        else:
            _write(lines, options.output)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # `predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 2 if bad and not options.skip_bad else 0


def _require_output(output: Path | None, files: list[str], as_json: bool) -> None:
    if output is None:
        return
    if output.suffix in OUTPUT_TABLES and as_json:
        raise UserError(Problem("--json writes JSON lines", "--output", value=str(output), hint="name the file .jsonl"))
    if output.resolve() in {Path(file).resolve() for file in files}:
        raise UserError(Problem("is one of the inputs", "--output", value=str(output)))


def _reported(predictions: Iterable[Prediction], bad: list[Prediction], skip_bad: bool) -> Iterator[Prediction]:
    """Reports the rows that could not be read, and collects them in `bad`."""
    for prediction in predictions:
        if prediction.fault:
            print(f"{'skipped' if skip_bad else 'error'}: {prediction.fault}", file=sys.stderr)
            bad.append(prediction)
        if not (prediction.fault and skip_bad):
            yield prediction


def _lines(predictions: Iterator[Prediction], output: Path | None, as_json: bool) -> Iterator[str]:
    suffix = output.suffix if output else ""
    if suffix in OUTPUT_TABLES:
        return table_lines(predictions, OUTPUT_TABLES[suffix])
    return map(json_line if as_json or suffix == ".jsonl" else plain_line, predictions)


def _write(lines: Iterator[str], output: Path) -> None:
    """Writes the file once the first line is known, so that a model that cannot be loaded costs no earlier output."""
    first = next(lines, None)
    try:
        with output.open("w", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in ([] if first is None else itertools.chain([first], lines)))
    except OSError as error:
        raise UserError(f"{output}: {error.strerror}") from error


def predict(
    model_folder: Path, files: list[str], trust: Trust = NO_TRUST, file_format: str = "", id_column: str = ""
) -> Iterator[Prediction]:
    """Yields a prediction for each input, in their order. Raises UserError."""
    folder, about = _find(model_folder)
    require_plugins(str(folder), about.get("plugins", ()))
    recipe = _recipe_in(folder / ABOUT, about)
    require_trust(recipe, trust, folder / ABOUT)

    # Imported late: invalid arguments are refused before torch is loaded.
    from sft_dist.logging_setup import quiet_libraries
    from sft_dist.tasks import task_of

    quiet_libraries()
    if problems := folder_problems(folder):
        raise UserError(problems)
    task = task_of(recipe)
    task.labels = about["labels"]
    reader = InputReader(task, file_format, id_column)
    inputs = (entry for file in files for entry in reader.read(file))
    first = next(inputs, None)
    if first is None:
        return
    model = _Model.load(folder, about["form"], task, _temperature_in(folder / ABOUT, about))
    size = recipe.evaluate.micro_batch * BATCHES_AT_ONCE
    for chunk in _chunks(itertools.chain([first], inputs), size):
        yield from model.predict(chunk)


def _chunks(inputs: Iterable[Input | None], size: int) -> Iterator[list[Input]]:
    """Inputs that are predicted together: at most `size`, or all that have come."""
    chunk: list[Input] = []
    for entry in inputs:
        if entry is not None:
            chunk.append(entry)
        if chunk and (entry is None or len(chunk) == size):
            yield chunk
            chunk = []
    if chunk:
        yield chunk


@dataclass(frozen=True)
class _Model:
    task: Task
    processor: Any
    model: Any
    device: Any
    temperature: float = 1.0  # by which logits of classes are divided

    @classmethod
    def load(cls, folder: Path, form: str, task: Task, temperature: float = 1.0) -> _Model:
        """Raises UserError for whatever is wrong with the folder."""
        # Imported late: invalid arguments are refused before torch is loaded.
        import torch

        from sft_dist.tasks.models import build_model
        from sft_dist.tuning import load_weights

        device = torch.accelerator.current_accelerator() or torch.device("cpu")
        try:
            processor = task.load_processor(str(folder), trust_remote_code=False)
            if form == "adapter":
                model: Any = build_model(task.recipe, task, processor)
                load_weights(model, folder)
            else:
                model = task.build_model(str(folder), None, {}, processor)
        except Exception as error:  # transformers and PEFT raise of every type for a file that they do not expect
            if isinstance(error, UserError) or is_out_of_memory(error):
                raise
            text = " ".join(str(error).split())[:300]
            message = f"{folder}: cannot be loaded: {type(error).__name__}: {text}; export it again"
            raise UserError(message) from error
        return cls(task, processor, model.to(device), device, temperature)

    def predict(self, inputs: list[Input]) -> list[Prediction]:
        """One prediction an input, in their order."""
        readable = [entry for entry in inputs if not entry.fault]
        predictions = iter(self._predict(readable) if readable else [])
        return [Prediction(entry, {}, entry.fault) if entry.fault else next(predictions) for entry in inputs]

    def _predict(self, inputs: list[Input]) -> list[Prediction]:
        """Where an input cannot be used, halves, so that the others have their predictions."""
        try:
            descriptions = self._describe(inputs)
        except (UserError, DataError) as error:
            if len(inputs) == 1:
                return [Prediction(inputs[0], {}, f"{inputs[0].source}: {' '.join(str(error).split())}")]
            middle = len(inputs) // 2
            return self._predict(inputs[:middle]) + self._predict(inputs[middle:])
        return [Prediction(entry, description) for entry, description in zip(inputs, descriptions, strict=True)]

    def _describe(self, inputs: list[Input]) -> list[dict[str, Any]]:
        """Raises UserError and DataError."""
        # Imported late: invalid arguments are refused before torch is loaded.
        from datasets import Dataset

        from sft_dist.data.encode import encode
        from sft_dist.data.rows import ROW, Examples
        from sft_dist.engines.precision import autocast
        from sft_dist.evaluation.inference import assemble, forward, length_sorted_batches

        task = self.task
        rows = [task.from_input(_values(entry, task.recipe)) for entry in inputs]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        numbers = list(range(len(rows)))
        table = Dataset.from_dict(encode(task, {**columns, ROW: numbers}, self.processor, "input"))
        examples = Examples(table.add_column(ROW, numbers), "input")
        batches = length_sorted_batches(examples.lengths, task.recipe.evaluate.micro_batch)
        casting = autocast(self.device, task.recipe.train.precision)
        parts = forward(self.model, task, None, self.processor, examples, batches, self.device, casting)
        predictions, _ = assemble(parts, len(inputs))
        if self.temperature != 1.0:
            predictions = [logits / self.temperature for logits in predictions]
        return task.describe(predictions, self.processor)


def _values(entry: Input, recipe: Recipe) -> dict[str, Any]:
    """Returns the texts of an input, cleaned as for training, and its images and recordings. Raises UserError."""
    # Imported late, as above.
    from sft_dist.data.clean import clean_text

    return {
        role: _media(text, entry.file, recipe)
        if role in recipe.task.media
        else clean_text(text, recipe.data.clean, role)
        for role, text in entry.row.items()
    }


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


def _temperature_in(file: Path, about: dict[str, Any]) -> float:
    temperature = about.get("temperature", 1.0)
    if not isinstance(temperature, (int, float)) or isinstance(temperature, bool) or not 0 < temperature < math.inf:
        raise UserError(f"{file}: temperature is {temperature!r}; a number above 0 is needed: export the model again")
    return float(temperature)


if __name__ == "__main__":
    sys.exit(main())
