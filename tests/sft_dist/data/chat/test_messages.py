"""Rows of every shape become the same messages, and what cannot be trained on is named."""

from __future__ import annotations

import json

import pytest

from sft_dist.data.chat.messages import cleaned, messages_of, unread_keys, until_last_answer, why_unusable, with_system
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Clean
from tests.sft_dist.data.chat.conversations import HELLO, turns_with


@pytest.mark.parametrize(
    "row",
    [
        {"messages": HELLO},
        {"messages": json.dumps(HELLO)},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "how many legs?"}]}, HELLO[1]]},
        {"conversations": [{"from": "human", "value": "how many legs?"}, {"from": "gpt", "value": "eight"}]},
        {"conversations": HELLO, "messages": None},
        {
            "conversations": [
                {"from": "human", "value": "how many legs?", "role": None},
                {"from": "gpt", "value": "eight"},
            ]
        },
        {"instruction": "how many legs?", "input": "", "output": "eight"},
        {"prompt": "how many legs?", "completion": "eight", "messages": None, "instruction": ""},
        {"prompt": HELLO[:1], "completion": HELLO[1:]},
        {"instruction": "how many legs?", "context": "", "response": "eight"},
        {"question": "how many legs?", "answer": "eight"},
        {"query": "how many legs?", "response": "eight"},
        {"prompt": "how many legs?", "response": "eight", "output": "eight"},
        {"prompt": "how many legs?", "messages": HELLO},
        {"data": ["how many legs?", "eight"]},
        {"conversation": HELLO},
        {"messages": [json.dumps(turn) for turn in HELLO]},
    ],
)
def test_every_shape_becomes_messages(row):
    assert messages_of(row, 0) == HELLO


def test_alpaca_with_input_system_and_history():
    row = {
        "instruction": "Translate.",
        "input": "chat",
        "output": "cat",
        "system": "Be short.",
        "history": [["Hi", "Hello"]],
    }
    assert [(m["role"], m["content"]) for m in messages_of(row, 0)] == [
        ("system", "Be short."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Translate.\nchat"),
        ("assistant", "cat"),
    ]


def test_the_context_follows_the_question_and_numbers_are_answers():
    row = {"system_prompt": "s", "question": "q", "context": "c", "answer": 0}
    assert [(m["role"], m["content"]) for m in messages_of(row, 0)] == [
        ("system", "s"), ("user", "q\nc"), ("assistant", "0")
    ]  # fmt: skip
    assert messages_of({"prompt": "q", "completion": 0}, 0)[1] == {"role": "assistant", "content": "0"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [{"role": "asistant", "content": "x"}]}, "unknown role"),
        ({"messages": [{"role": "user"}]}, "a turn without text"),
        ({"messages": [HELLO[0], "hello"]}, "a turn has `role` and `content`"),
        ({"question": "x", "answer": "y", "response": "z"}, "several columns have an answer: response, answer"),
        ({"messages": "not json"}, "not a conversation"),
        ({"messages": {"role": "user"}}, "a list of turns is needed"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not text"),
        ({"instruction": "x", "history": ["q", "a"]}, "pairs of question and answer"),
    ],
)
def test_a_broken_row_is_named(row, said):
    with pytest.raises(UserError, match=f"row 12: .*{said}") as error:
        messages_of(row, 12)
    assert error.value.problems[0].value


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": "[" * 9000 + "]" * 9000}, "row 4: not a conversation: maximum recursion depth"),
        ({"messages": [HELLO[0], {**HELLO[1], "tool_calls": "[" * 9000}]}, "row 4: `tool_calls` are not JSON: maximum recursion"),
        ({"messages": HELLO, "tools": "[" * 9000}, "row 4: the definitions of tools are not JSON: maximum recursion depth"),
    ],
)  # fmt: skip
def test_a_row_that_is_nested_too_deeply_is_named(row, said):
    with pytest.raises(UserError) as caught:
        messages_of(row, 4)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"messages": HELLO, "prompt": "how many legs?", "id": 3, "tools": None}, ["id", "prompt"]),
        ({"messages": [{**HELLO[0], "lang": "en", "id": None}, HELLO[1]]}, ["messages.lang"]),
        ({"conversations": json.dumps([{**HELLO[0], "lang": "en"}])}, ["conversations.lang"]),
        (
            {"instruction": "x", "input": "", "output": "y", "history": [["a", "b"]], "system": "s", "text": "z"},
            ["text"],
        ),
        ({"question": "x", "context": "", "answer": "y", "prompt": "z"}, ["question"]),
        ({"messages": [{**HELLO[1], "weight": 1, "thinking": "t", "name": "n"}], "tools": "[]", "system": "s"}, []),
    ],
)
def test_what_is_not_read_is_named(row, names):
    assert list(unread_keys(row)) == names


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "empty conversation"),
        ({"messages": HELLO[:1]}, "no answer"),
        ({"instruction": "x", "output": ""}, "no answer"),
        ({"messages": [HELLO[0], {"role": "assistant", "content": " \n"}]}, "empty answer"),
        ({"messages": HELLO[::-1]}, "begins with an answer"),
        ({"messages": [{"role": "system", "content": "s"}, HELLO[1]]}, "begins with an answer"),
        ({"messages": HELLO[1:]}, "begins with an answer"),
        ({"prompt": " ", "completion": "x"}, "empty text"),
        ({"messages": [HELLO[0], {"role": "assistant", "content": ""}, *HELLO]}, "empty answer"),
        ({"messages": [*HELLO, HELLO[0], {"role": "assistant", "content": " "}]}, "empty answer"),
        ({"messages": [HELLO[0], {"role": "assistant", "content": "", "weight": 0}, *HELLO]}, ""),
        ({"messages": [*HELLO, {"role": "user", "content": " "}, HELLO[1]]}, "empty text"),
        (
            {
                "messages": [
                    HELLO[0],
                    {"role": "assistant", "content": "f()"},
                    {"role": "tool", "content": ""},
                    HELLO[1],
                ]
            },
            "",
        ),
        ({"messages": HELLO}, ""),
    ],
)
def test_what_cannot_be_trained_on_is_told(row, reason):
    assert why_unusable(messages_of(row, 0)) == reason


def test_messages_are_cleaned_and_tool_calls_are_not():
    call = {"function": {"name": "find", "arguments": {"text": " \ufb01lm "}}}
    said = [{"role": "user", "content": " \ufb01lm\n"}, {"role": "assistant", "content": " ", "tool_calls": [call]}]
    assert cleaned(said, Clean(unicode="NFKC")) == [
        {"role": "user", "content": "film"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    assert cleaned(said, Clean(strip=False)) == said


def test_turns_nobody_answers_are_left_out_and_a_system_message_is_added_once():
    assert until_last_answer([*HELLO, HELLO[0]]) == HELLO
    with_one = with_system(HELLO, "Be kind.")
    assert with_one == [{"role": "system", "content": "Be kind."}, *HELLO]
    assert with_system(with_one, "Be rude.") == with_one


def test_conversations_without_an_answer_to_train_on_are_unusable():
    assert why_unusable(turns_with({"weight": 0}, {"loss": False})) == "no answer"
    assert why_unusable(turns_with({"weight": 0}, {"weight": 1})) == ""


@pytest.mark.parametrize("nothing", [None, "", "[]", [], {}])
def test_a_conversation_without_tools_has_no_definitions(nothing):
    assert messages_of({"messages": HELLO, "tools": nothing}, 0) == HELLO
