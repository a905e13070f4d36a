"""A language model that has learned twenty capitals by heart, and tasks of lm-eval that ask for them, in local files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sft_dist.tasks import task_of
from tests.tiny_text import byte_tokenizer, causal_model, examples_of, recipe_of, train_on

CAPITALS = {
    "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Austria": "Vienna", "Poland": "Warsaw", "Norway": "Oslo",
    "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen", "Greece": "Athens", "Turkey": "Ankara",
    "Egypt": "Cairo", "Kenya": "Nairobi", "Japan": "Tokyo", "India": "New Delhi", "China": "Beijing", "Peru": "Lima",
    "Chile": "Santiago", "Cuba": "Havana", "Canada": "Ottawa",
}  # fmt: skip
MULTIPLE_CHOICE = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: capitals.json}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "What is the capital of {{{{country}}}}?"
doc_to_choice: "{{{{cities}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
GENERATION = """\
task: capital
dataset_path: json
dataset_kwargs: {data_files: {test: capitals.json}}
test_split: test
output_type: generate_until
doc_to_text: "What is the capital of {{country}}?"
doc_to_target: "{{cities[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 12}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
  - {metric: bleu, aggregation: bleu, higher_is_better: true}
"""


def write_tasks(folder: Path) -> Path:
    """Writes `choice.yaml`, `capital.yaml` and the group `both.yaml` of two tasks, with their data beside them."""
    folder.mkdir()
    cities = list(CAPITALS.values())
    rows = [
        {"country": country, "cities": [city, cities[(i + 7) % 20]][:: 1 if i % 2 else -1], "answer": 1 - i % 2}
        for i, (country, city) in enumerate(CAPITALS.items())
    ]
    (folder / "capitals.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "choice.yaml").write_text(MULTIPLE_CHOICE.format(name="choice"))
    (folder / "choice-again.yaml").write_text(MULTIPLE_CHOICE.format(name="choice_again"))
    (folder / "capital.yaml").write_text(GENERATION)
    group = "group: both\ntask: [choice, choice_again]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    (folder / "both.yaml").write_text(group)
    return folder


def write_base(folder: Path, steps: int = 60) -> Path:
    """Writes the model, trained on all questions in the form of its chat template."""
    tokenizer = byte_tokenizer(
        texts=[f"What is the capital of {country}? {city}" for country, city in CAPITALS.items()]
    )
    task = task_of(recipe_of("instruction-tuning", max_length=64))
    chats = [task.read(row, number)["chat"] for number, row in enumerate(conversations())]
    examples = examples_of(task, {"chat": chats}, tokenizer)
    train_on(task, causal_model("llama", len(tokenizer)), examples, tokenizer, steps, lr=1e-2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def conversations() -> list[dict[str, str]]:
    return [{"prompt": f"What is the capital of {country}?", "completion": city} for country, city in CAPITALS.items()]


def settings_of(base: Path, tasks: list[Path | str], folder: Path, **changed: Any) -> dict[str, Any]:
    """The settings of a run on these conversations that is judged on the tasks."""
    for name, rows in (("train", conversations()[:8]), ("validation", conversations()[8:])):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    lm_eval = {"tasks": list(map(str, tasks)), "apply_chat_template": True, "allow_code": True, **changed}
    return {
        "task": {"type": "instruction-tuning", "max_new_tokens": 12},
        "model": {"path": str(base)},
        "data": {"source": {"train": "./train.jsonl", "validation": "./validation.jsonl"}, "max_length": 64},
        "tuning": "full",
        "evaluate": {"metric": "token_accuracy", "report_on": [], "export": "none", "lm_eval": lm_eval},
    }
