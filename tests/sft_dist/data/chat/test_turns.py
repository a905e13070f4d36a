"""Turns, tool calls and definitions of tools in the forms that data sets have; what has no meaning is refused."""

from __future__ import annotations

import pytest

from sft_dist.data.chat.messages import messages_of, why_unusable
from sft_dist.recipe.errors import UserError
from tests.sft_dist.data.chat.conversations import HELLO, thoughtful


def test_sharegpt_tools_keep_their_text():
    turns = [("system", "s"), ("human", "q"), ("function_call", '{"name": "f"}'), ("observation", "42"), ("gpt", "42!")]
    row = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    roles = ["system", "user", "assistant", "tool", "assistant"]
    assert [m["role"] for m in messages_of(row, 0)] == roles
    assert [m["content"] for m in messages_of(row, 0)] == [text for _, text in turns]


def test_openai_tool_calls_need_no_text():
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
    row = {"messages": [HELLO[0], {"role": "assistant", "content": None, "tool_calls": [call]}]}
    assert messages_of(row, 0)[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert why_unusable(messages_of(row, 0)) == ""


def test_a_turn_that_is_nested_too_deeply_is_text():
    assert messages_of({"messages": ['{"role":' * 9000, "yes"]}, 4)[0]["content"].startswith('{"role":{"role":')


@pytest.mark.parametrize("key", ["masked", "loss_scale", "train_detail", "images", "tools"])
def test_keys_of_a_turn_that_change_what_is_learned_are_refused(key):
    with pytest.raises(UserError, match=f"row 2: `{key}` of a turn is not supported"):
        messages_of({"messages": [HELLO[0], {**HELLO[1], key: ["x"]}]}, 2)
    assert messages_of({"messages": [HELLO[0], {**HELLO[1], key: None}]}, 2) == HELLO


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({**HELLO[1], "weight": 0.5}, "`weight` of a turn is 0 or 1"),
        ({**HELLO[1], "loss": "no"}, "`loss` of a turn is 0 or 1"),
        ({**HELLO[1], "weight": 1, "train": False}, "`weight`, `train` of a turn contradict each other"),
        ({**HELLO[0], "train": True}, "only turns of the assistant are trained on"),
    ],
)
def test_flags_without_a_meaning_are_refused(turn, message):
    with pytest.raises(UserError, match=f"row 4: {message}"):
        messages_of({"messages": [turn]}, 4)


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ([{"function": {"name": "f", "arguments": "{city: Paris}"}}], "the arguments of a tool call are not JSON"),
        ([{"function": {"name": "f", "arguments": "[1]"}}], "the arguments of a tool call are an object"),
        ([{"function": {"arguments": "{}"}}], "a tool call has a function with `name`"),
        (["f()"], "a tool call has a function with `name`"),
        ({"name": "f"}, "`tool_calls` is a list"),
        ("f()", "`tool_calls` are not JSON"),
    ],
)
def test_broken_tool_calls_name_the_row(calls, message):
    with pytest.raises(UserError, match=f"row 8: {message}"):
        messages_of({"messages": [HELLO[0], {"role": "assistant", "content": None, "tool_calls": calls}]}, 8)


def test_no_reasoning_leaves_no_trace():
    assert thoughtful(reasoning_content=None, thinking="") == HELLO


def test_reasoning_is_one_text():
    with pytest.raises(UserError, match="row 6: the reasoning of a turn is text"):
        thoughtful(thinking=["a"])
    with pytest.raises(UserError, match="row 6: a turn has one reasoning"):
        thoughtful(thinking="a", reasoning_content="b")
    with pytest.raises(UserError, match="row 6: a part of a message that is not text"):
        thoughtful(content=[{"type": "thinking", "thinking": "a"}, {"type": "text", "text": "b"}])


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("weather", "the definitions of tools are not JSON"),
        ([{"type": "function"}], "a tool has a function with `name`"),
    ],
)
def test_broken_definitions_name_the_row(tools, message):
    with pytest.raises(UserError, match=f"row 5: {message}"):
        messages_of({"messages": HELLO, "tools": tools}, 5)
