"""Whatever a file holds, reading it gives a recipe or a message for the user, never anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.load import load
from sft_dist.recipe.schema import Recipe
from tests.sft_dist.recipe.recipe_texts import GOOD, write

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FULL = GOOD + (
    "evaluate: {metric: accuracy, report_on: [test]}\n"
    "resources: {time: 2h, memory: 8GB, nodes: 1}\n"
    "matrix: {train.lr: [1, 2], zip: [{train.seed: [1, 2]}]}\n"
)
WORDS = st.sampled_from(
    [
        *"[]{}:,-#&*!|>'\"%@`?\t\n ~\x00\x85\ufeffé\U0001f600",
        *("\n  ", ": ", "- ", "---\n", "<<: ", "&a ", "*a", "!!str "),
        *("null", "true", "1e-4", ".nan", "0", "-1", "9" * 40, "r", "name", "full", "lora", "train"),
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEY_PATHS = st.sampled_from(
    [
        *(
            "name",
            "base",
            "task",
            "nothing",
            "a.b.c",
            "model.path",
            "model.config",
            "evaluate.report_on",
            "resources.time",
        ),
        *("data.source", "data.source.train", "data.where", "data.columns", "data.labels"),
        *("tuning", "tuning.method", "tuning.r", "matrix", "matrix.train.lr", "matrix.zip"),
        *("train", "train.loss", "train.loss.class_weights", "train.optimizer", "train.optimizer.betas"),
        *("train.micro_batch", "train.warmup"),
    ]
)


def recipe_or_message(file: Path, overrides: list[str] | None = None) -> None:
    found: Recipe | UserError
    try:
        found = load(file, overrides or [])
    except UserError as error:
        found = error
    if isinstance(found, UserError):
        assert found.problems
        assert found.to_json()
        assert "object at 0x" not in found.render()
    else:
        assert Recipe.model_validate_json(found.model_dump_json()) == found


@FEW
@given(raw=st.binary(max_size=300))
def test_random_bytes(raw: bytes, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(raw)
    recipe_or_message(file)


@FEW
@given(edits=st.lists(st.tuples(st.integers(0, len(FULL)), st.integers(0, 12), WORDS), min_size=1, max_size=4))
def test_random_edits_of_a_good_recipe(edits: list[tuple[int, int, str]], tmp_path: Path) -> None:
    text = FULL
    for start, cut, word in edits:
        text = text[:start] + word + text[start + cut :]
    recipe_or_message(write(tmp_path, text))


@FEW
@given(start=st.integers(0, len(FULL)), raw=st.binary(min_size=1, max_size=4))
def test_random_bytes_within_a_good_recipe(start: int, raw: bytes, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(FULL.encode()[:start] + raw + FULL.encode()[start:])
    recipe_or_message(file)


@FEW
@given(path=KEY_PATHS, value=VALUES)
def test_random_values_at_every_place(path: str, value: object, tmp_path: Path) -> None:
    recipe_or_message(write(tmp_path, FULL), [f"{path}={flow(value)}"])


@FEW
@given(override=st.text(max_size=40))
def test_random_overrides(override: str, tmp_path: Path) -> None:
    recipe_or_message(write(tmp_path), [override, f"train.lr={override}"])


def test_the_good_recipe_is_good(tmp_path: Path) -> None:
    assert load(write(tmp_path, FULL)).matrix is not None


def flow(value: object) -> str:
    """A value in YAML's flow style."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(char):08x}" for char in value) + '"'
    return {"None": "null", "nan": ".nan", "inf": ".inf", "-inf": "-.inf"}.get(str(value), str(value).lower())


@pytest.mark.parametrize("value", [{"a": [1.5, None, "x\n"]}, [], float("nan")])
def test_flow_style_reads_back(value: object, tmp_path: Path) -> None:
    from sft_dist.recipe.yaml_lines import parse_yaml

    assert repr(parse_yaml(flow(value), "r").data) == repr(value)
