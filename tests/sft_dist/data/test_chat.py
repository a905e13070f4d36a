"""Conversations of every shape, and the mark on the tokens that are learned."""

from __future__ import annotations

import json

import pytest

from sft_dist.data.chat import (
    PLAIN_TEMPLATE,
    cleaned,
    messages_of,
    tokenize_chats,
    unread,
    until_last_answer,
    why_unusable,
    with_system,
)
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Clean
from tests.tiny_text import CHATML, byte_tokenizer

HELLO = [{"role": "user", "content": "how many legs?"}, {"role": "assistant", "content": "eight"}]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def learned(tokenizer, chat, template=CHATML):
    """What the model is to say, answer by answer, as text."""
    tokenizer.chat_template = template
    (tokens,) = tokenize_chats([chat], tokenizer, [7])
    pieces, before = [], False
    for id_, answer in zip(tokens.ids, tokens.answer, strict=True):
        if answer:
            pieces = [*pieces[:-1], [*pieces[-1], id_]] if before else [*pieces, [id_]]
        before = answer
    return [tokenizer.decode(piece) for piece in pieces]


# ── shapes ──────────────────────────────────────────────────────────────────────────────────────────────────────────
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


def test_a_turn_that_is_nested_too_deeply_is_text():
    assert messages_of({"messages": ['{"role":' * 9000, "yes"]}, 4)[0]["content"].startswith('{"role":{"role":')


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
    assert list(unread(row)) == names


@pytest.mark.parametrize("key", ["masked", "loss_scale", "train_detail", "images", "tools"])
def test_keys_of_a_turn_that_change_what_is_learned_are_refused(key):
    with pytest.raises(UserError, match=f"row 2: `{key}` of a turn is not supported"):
        messages_of({"messages": [HELLO[0], {**HELLO[1], key: ["x"]}]}, 2)
    assert messages_of({"messages": [HELLO[0], {**HELLO[1], key: None}]}, 2) == HELLO


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


# ── the mark ────────────────────────────────────────────────────────────────────────────────────────────────────────
TWO = [
    {"role": "system", "content": "Be short."},
    *HELLO,
    {"role": "user", "content": "and a cat?"},
    {"role": "assistant", "content": "four\n\nlegs "},
]
LLAMA3 = (
    "{{ '<|begin|>' }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n\\n' + message['content'] | trim"
    " + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n\\n' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Like Qwen3's: thoughts are written in the last answer only.
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Like Mistral's: no token begins an answer, and turns must alternate.
STRICT = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + '<|endoftext|>' }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        (CHATML, ["eight<|im_end|>", "four\n\nlegs <|im_end|>"]),
        (MARKED, ["eight<|im_end|>", "four\n\nlegs <|im_end|>"]),
        (LLAMA3, ["eight<|im_end|>", "four\n\nlegs<|im_end|>"]),
        (THINKING, ["eight<|im_end|>", "<think>\n\n</think>\n\nfour\n\nlegs <|im_end|>"]),
        (PLAIN_TEMPLATE, ["eight<|endoftext|>", "four\n\nlegs <|endoftext|>"]),
    ],
    ids=["chatml", "marked", "llama3", "thinking", "plain"],
)
def test_only_answers_and_the_token_that_ends_them_are_learned(tokenizer, template, answers):
    assert learned(tokenizer, TWO, template) == answers


def test_a_template_without_a_turn_token(tokenizer):
    assert learned(tokenizer, TWO[1:], STRICT) == [" eight<|endoftext|>", " four\n\nlegs <|endoftext|>"]


def test_the_tokens_are_those_of_the_template_itself(tokenizer):
    for template in (CHATML, MARKED):
        tokenizer.chat_template = template
        (tokens,) = tokenize_chats([TWO], tokenizer, [0])
        assert tokens.ids == tokenizer.apply_chat_template(TWO, tokenize=True)["input_ids"]
        prompt = tokenizer.apply_chat_template(TWO[:-1], add_generation_prompt=True)["input_ids"]
        assert tokens.ids[: len(prompt)] == prompt, "training and generation see the same prompt"
        assert not any(tokens.answer[: len(TWO[0])])


def test_the_templates_own_refusal_names_the_row(tokenizer):
    tokenizer.chat_template = STRICT
    with pytest.raises(UserError, match=r"row 31: .*Conversation roles must alternate"):
        tokenize_chats([[HELLO[0], HELLO[0], HELLO[1]]], tokenizer, [31])


def test_a_template_whose_answers_cannot_be_told_is_an_error(tokenizer):
    tokenizer.chat_template = "{% for m in messages | reverse %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match=r"row 5: .*cannot be located"):
        tokenize_chats([HELLO], tokenizer, [5])


def test_a_tool_call_that_the_template_leaves_out_is_an_error(tokenizer):
    call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    for template in (CHATML, MARKED):
        tokenizer.chat_template = template
        with pytest.raises(UserError, match=r"row 9: .*omits the tool call `weather`"):
            tokenize_chats([[HELLO[0], {"role": "assistant", "content": "", "tool_calls": [call]}]], tokenizer, [9])


# ── answers that are context only ───────────────────────────────────────────────────────────────────────────────────
def turns_with(*flags):
    """A question and an answer for each mapping of flags."""
    pairs = [[HELLO[0], {"role": "assistant", "content": f"answer {n}", **flag}] for n, flag in enumerate(flags)]
    return messages_of({"messages": [turn for pair in pairs for turn in pair]}, 3)


@pytest.mark.parametrize("template", [CHATML, MARKED, THINKING, PLAIN_TEMPLATE])
@pytest.mark.parametrize("flag", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}])
def test_an_answer_excluded_from_training_is_context_only(tokenizer, template, flag):
    chat = turns_with({}, flag, {"weight": None, "train": True})
    answers = learned(tokenizer, chat, template)
    assert ["answer 0" in answers[0], "answer 2" in answers[1], len(answers)] == [True, True, 2]
    tokenizer.chat_template = template
    (tokens,) = tokenize_chats([chat], tokenizer, [0])
    assert "answer 1" in tokenizer.decode(tokens.ids)


def test_conversations_without_an_answer_to_train_on_are_unusable():
    assert why_unusable(turns_with({"weight": 0}, {"loss": False})) == "no answer"
    assert why_unusable(turns_with({"weight": 0}, {"weight": 1})) == ""


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


# ── tool calls ──────────────────────────────────────────────────────────────────────────────────────────────────────
WEATHER = {"name": "weather", "arguments": {"city": "Z\u00fcrich", "days": 3, "unit": None}}
ARGUMENTS = json.dumps(WEATHER["arguments"], ensure_ascii=False)
# Like Qwen's.
WITH_TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endif %}{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.reasoning_content %}{{ '<think>' + message.reasoning_content + '</think>' }}{% endif %}"
    "{{ message.content }}{% for call in message.tool_calls %}{% set call = call.function or call %}"
    "{{ '<call>' + call.name + ' ' + call.arguments | tojson + '</call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Like DeepSeek's, whose arguments must be text, and like others that write what they are given.
CONCATENATED = WITH_TOOLS.replace("call.arguments | tojson", "call.arguments")
WRITTEN = WITH_TOOLS.replace(" + call.arguments | tojson + '</call>' }}", "}}{{ call.arguments }}{{ '</call>' }}")


@pytest.mark.parametrize("template", [WITH_TOOLS, CONCATENATED, WRITTEN])
@pytest.mark.parametrize(
    "calls",
    [
        {"tool_calls": [{"type": "function", "function": WEATHER}]},
        {"tool_calls": [{"type": "function", "function": {**WEATHER, "arguments": ARGUMENTS}}]},
        {"tool_calls": json.dumps([{"type": "function", "function": {**WEATHER, "arguments": ARGUMENTS}}])},
        {"tool_calls": [WEATHER]},
        {"function_call": {**WEATHER, "arguments": ARGUMENTS}},
    ],
)
def test_arguments_are_learned_as_objects_in_whatever_form_they_come(tokenizer, template, calls):
    chat = messages_of({"messages": [HELLO[0], {"role": "assistant", "content": None, **calls}]}, 0)
    assert learned(tokenizer, chat, template) == [f"<call>weather {ARGUMENTS}</call><|im_end|>"]


def test_a_call_without_arguments_has_an_empty_object(tokenizer):
    for arguments in ("", None, {}, "{}"):
        call = {"function": {"name": "now", "arguments": arguments}}
        chat = messages_of({"messages": [HELLO[0], {"role": "assistant", "content": "", "tool_calls": [call]}]}, 0)
        assert learned(tokenizer, chat, WITH_TOOLS) == ["<call>now {}</call><|im_end|>"]


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


# ── reasoning ───────────────────────────────────────────────────────────────────────────────────────────────────────
def thoughtful(**answer):
    return messages_of({"messages": [HELLO[0], {**HELLO[1], **answer}]}, 6)


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("template_key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_learned_by_whatever_name(tokenizer, key, template_key):
    template = WITH_TOOLS.replace("reasoning_content", template_key)
    chat = cleaned(thoughtful(**{key: " spiders have eight\n"}), Clean())
    assert learned(tokenizer, chat, template) == ["<think>spiders have eight</think>eight<|im_end|>"]


def test_no_reasoning_leaves_no_trace():
    assert thoughtful(reasoning_content=None, thinking="") == HELLO


def test_reasoning_that_the_template_omits_is_an_error(tokenizer):
    with pytest.raises(UserError, match="row 7: the chat template omits the reasoning of an answer"):
        learned(tokenizer, thoughtful(thinking="spiders have eight"), CHATML)


def test_templates_may_cut_earlier_reasoning(tokenizer):
    last_only = WITH_TOOLS.replace("if message.reasoning_content", "if loop.last and message.reasoning_content")
    answers = learned(tokenizer, thoughtful(thinking="first") + thoughtful(thinking="second"), last_only)
    assert answers == ["eight<|im_end|>", "<think>second</think>eight<|im_end|>"]


def test_reasoning_is_one_text():
    with pytest.raises(UserError, match="row 6: the reasoning of a turn is text"):
        thoughtful(thinking=["a"])
    with pytest.raises(UserError, match="row 6: a turn has one reasoning"):
        thoughtful(thinking="a", reasoning_content="b")
    with pytest.raises(UserError, match="row 6: a part of a message that is not text"):
        thoughtful(content=[{"type": "thinking", "thinking": "a"}, {"type": "text", "text": "b"}])


def test_a_system_message_that_the_template_omits_is_an_error(tokenizer):
    shown = "{% for message in messages if message.role != 'system' or message.content == 'a' %}"
    first_only = CHATML.replace("{% for message in messages %}", shown)
    chat = [{"role": "system", "content": "a"}, *HELLO]
    assert learned(tokenizer, chat, first_only) == ["eight<|im_end|>"]
    with pytest.raises(UserError, match="row 7: the chat template omits a system message"):
        learned(tokenizer, [*chat, {"role": "system", "content": "now be rude"}, *HELLO], first_only)
    assert len(learned(tokenizer, [*chat, {"role": "system", "content": "now be rude"}, *HELLO], CHATML)) == 2


# ── definitions of tools ────────────────────────────────────────────────────────────────────────────────────────────
NO_MARKS = "{% if false %}{% generation %}{% endgeneration %}{% endif %}"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "weather", "description": "Weather of a city", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}
PADDED = {**TOOL, "function": {**FUNCTION, "parameters": {**PARAMETERS, "required": None}}, "strict": None}
ASKED = [HELLO[0], {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": WEATHER}]}]


@pytest.mark.parametrize(
    "tools",
    [
        {"tools": [TOOL]},
        {"tools": json.dumps([TOOL])},
        {"tools": TOOL},
        {"tools": [json.dumps(TOOL)]},
        {"tools": [FUNCTION]},
        {"tools": [PADDED]},
        {"functions": [FUNCTION]},
    ],
)
@pytest.mark.parametrize("template", [WITH_TOOLS, NO_MARKS + WITH_TOOLS])
def test_definitions_of_tools_are_in_the_prompt(tokenizer, tools, template):
    tokenizer.chat_template = template
    (tokens,) = tokenize_chats([messages_of({"messages": ASKED, **tools}, 0)], tokenizer, [0])
    assert tokenizer.decode(tokens.ids).startswith(
        f"<|im_start|>system\n{json.dumps(TOOL)}<|im_end|>\n<|im_start|>user"
    )


def test_sharegpt_calls_of_defined_tools_are_tool_calls(tokenizer):
    turns = [("human", "q"), ("function_call", json.dumps(WEATHER)), ("observation", "sunny"), ("gpt", "It is sunny.")]
    row = {"conversations": [{"from": who, "value": text} for who, text in turns], "tools": json.dumps([TOOL])}
    answers = [f"<call>weather {ARGUMENTS}</call><|im_end|>", "It is sunny.<|im_end|>"]
    assert learned(tokenizer, messages_of(row, 0), WITH_TOOLS) == answers
    row["conversations"][1]["value"] = "weather()"
    with pytest.raises(UserError, match="row 2: a function_call is not JSON"):
        messages_of(row, 2)


@pytest.mark.parametrize("nothing", [None, "", "[]", [], {}])
def test_a_conversation_without_tools_has_no_definitions(nothing):
    assert messages_of({"messages": HELLO, "tools": nothing}, 0) == HELLO


def test_the_system_message_comes_after_the_definitions(tokenizer):
    chat = with_system(messages_of({"messages": HELLO, "tools": [TOOL]}, 0), "Be kind.")
    assert [message["role"] for message in chat] == ["tools", "system", "user", "assistant"]
    assert with_system(chat, "Be rude.") == chat
    assert why_unusable(chat) == ""
    assert cleaned(chat, Clean(unicode="NFKC"))[0] == chat[0]


def test_definitions_that_the_template_omits_are_an_error(tokenizer):
    with pytest.raises(UserError, match="row 7: the chat template omits the definition of the tool `weather`"):
        learned(tokenizer, messages_of({"messages": HELLO, "tools": [TOOL]}, 0), CHATML)


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
