"""The starter recipe and the JSON schema are whole, and agree with what the loader accepts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from launch.starters import json_schema, starter
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.load import load
from sft_dist.recipe.reflection import sections, tag_name
from sft_dist.recipe.tasks import TASKS
from tests.sft_dist.recipe.recipe_texts import write

# Shown in the starter, and of use only with other settings than the starter's.
ELSEWHERE = {
    "task.threshold",
    "task.label_separator",
    "task.source_language",
    "task.target_language",
    "data.streaming",
    "data.subset",
    "data.revision",
    "data.weights",
}
NOT_FOR_ALL = {"labels", "sampling", "augment"}  # tasks without classes, or without random changes


def commented_settings(text: str) -> dict[str, str]:
    """Key path -> value of every setting that stands there as a comment."""
    path: list[str] = []
    found = {}
    for line in text.splitlines():
        match = re.match(r"^( *)(# )?([a-z_]+):(?: (.+))?$", line)
        if not match or match[3] == "base":
            continue
        around = sections().get(tuple(path[: len(match[1]) // 2]), ())
        if not any(match[3] in one.model_fields for one in around):
            continue  # prose with a colon
        path = [*path[: len(match[1]) // 2], match[3]]
        if match[2] and match[4]:
            found[".".join(path)] = match[4]
    return found


@pytest.mark.parametrize("task", TASKS)
def test_a_starter_loads_as_it_is(task: str, tmp_path: Path) -> None:
    assert load(write(tmp_path, starter(task))).task.type == task


@pytest.mark.parametrize("task", TASKS)
def test_every_commented_setting_of_a_starter_works_when_taken_in(task: str, tmp_path: Path) -> None:
    file = write(tmp_path, starter(task))
    settings = commented_settings(starter(task))
    assert len(settings) > 30
    for path, value in settings.items():
        if path not in ELSEWHERE:
            assert load(file, [f"{path}={value}"])


@pytest.mark.parametrize("task", TASKS)
def test_a_starter_names_every_section_and_setting(task: str) -> None:
    text = starter(task)
    for path, classes in sections().items():
        if len(path) < 2 and len(classes) == 1 and path not in (("matrix",), ("search",)):
            for key, field in classes[0].model_fields.items():
                shown = re.search(rf"^ *(# )?{key}:", text, re.MULTILINE)
                shown = shown or (key == "lm_eval" and task != "instruction-tuning")
                assert shown or (key in NOT_FOR_ALL and task != "text-classification"), key
                assert field.description, key


def test_a_task_there_is_not_is_a_user_error() -> None:
    with pytest.raises(UserError, match="did you mean `text-classification`"):
        starter("text-clasification")


def test_the_json_schema_is_json_and_knows_base_and_bare_names() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["properties"]["base"]["type"] == "string"
    assert schema["additionalProperties"] is False
    assert schema["properties"]["tuning"]["anyOf"][0] == {
        "enum": ["full", "freeze", "bitfit", "lora", "qlora", "ia3", "prefix", "prompt"]
    }
    assert "sgd" in schema["$defs"]["Train"]["properties"]["optimizer"]["anyOf"][0]["enum"]
    assert {"type": "boolean"} in schema["$defs"]["Data"]["properties"]["streaming"]["anyOf"]
    assert schema["else"]["required"] == ["task", "model", "data", "tuning", "train"]
    assert schema["else"]["properties"]["train"] == {"required": ["lr"]}


def test_every_reference_in_the_json_schema_leads_somewhere() -> None:
    schema = json_schema()
    found: list[str] = []

    def visit(part: Any) -> None:
        if isinstance(part, dict):
            if "$ref" in part:
                found.append(part["$ref"])
            for inner in part.values():
                visit(inner)
        elif isinstance(part, list):
            for inner in part:
                visit(inner)

    visit(schema)
    assert found
    assert {name.removeprefix("#/$defs/") for name in found} <= set(schema["$defs"])


def test_every_setting_has_a_description() -> None:
    for classes in sections().values():
        for one in classes:
            for key, field in one.model_fields.items():
                assert field.description, f"{one.__name__}.{key}"


def test_every_choice_names_itself_by_its_first_key() -> None:
    for path, classes in sections().items():
        if len(classes) > 1:
            assert len({tag_name(one) for one in classes}) == 1, path
            assert tag_name(classes[0]), path
