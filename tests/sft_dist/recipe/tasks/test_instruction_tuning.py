"""Which columns make conversations."""

import pytest

from sft_dist.recipe.tasks.instruction_tuning import InstructionTuningTask

TASK = InstructionTuningTask(type="instruction-tuning")


@pytest.mark.parametrize(
    "columns",
    [
        ["messages"],
        ["conversations", "tools"],
        ["instruction", "input", "output"],
        ["instruction", "context", "response"],
        ["system_prompt", "question", "response"],
        ["prompt", "completion"],
        ["question", "answer"],
        ["input", "output"],
        ["data"],
    ],
)
def test_columns_of_the_usual_data_sets_are_complete(columns):
    assert set(columns) <= set(TASK.columns)
    assert TASK.missing_columns(columns, columns) is None


@pytest.mark.parametrize(
    ("roles", "columns", "message", "example"),
    [
        ([], ["text"], "no column has conversations", "{messages: NAME}"),
        ([], ["id", "a"], "no column has conversations", "{messages: NAME}"),
        (["instruction"], ["instruction", "reply"], "no column has the answers", "{output: NAME}"),
        (["context", "response"], ["context", "response"], "no column has the questions", "{instruction: NAME}"),
        (["system"], ["system"], "no column has conversations", "{messages: NAME}"),
    ],
)
def test_missing_columns_are_named_with_what_is_valid(roles, columns, message, example):
    problem = TASK.missing_columns(roles, columns)
    assert problem.message.startswith(message)
    assert example in problem.hint
    assert ("`text`" in problem.hint) == ("text" in columns)
    assert problem.value == ", ".join(columns)
