"""The mark on the tokens that are learned, whatever the chat template."""

from __future__ import annotations

import json

import pytest

from sft_dist.data.chat.messages import cleaned, messages_of, why_unusable, with_system
from sft_dist.data.chat.template import PLAIN_TEMPLATE, tokenize_chats
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Clean
from tests.sft_dist.data.chat.conversations import HELLO, thoughtful, turns_with
from tests.tiny_text import CHATML, byte_tokenizer


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


@pytest.mark.parametrize("template", [CHATML, MARKED, THINKING, PLAIN_TEMPLATE])
@pytest.mark.parametrize("flag", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}])
def test_an_answer_excluded_from_training_is_context_only(tokenizer, template, flag):
    chat = turns_with({}, flag, {"weight": None, "train": True})
    answers = learned(tokenizer, chat, template)
    assert ["answer 0" in answers[0], "answer 2" in answers[1], len(answers)] == [True, True, 2]
    tokenizer.chat_template = template
    (tokens,) = tokenize_chats([chat], tokenizer, [0])
    assert "answer 1" in tokenizer.decode(tokens.ids)


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


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("template_key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_learned_by_whatever_name(tokenizer, key, template_key):
    template = WITH_TOOLS.replace("reasoning_content", template_key)
    chat = cleaned(thoughtful(**{key: " spiders have eight\n"}), Clean())
    assert learned(tokenizer, chat, template) == ["<think>spiders have eight</think>eight<|im_end|>"]


def test_reasoning_that_the_template_omits_is_an_error(tokenizer):
    with pytest.raises(UserError, match="row 7: the chat template omits the reasoning of an answer"):
        learned(tokenizer, thoughtful(thinking="spiders have eight"), CHATML)


def test_templates_may_cut_earlier_reasoning(tokenizer):
    last_only = WITH_TOOLS.replace("if message.reasoning_content", "if loop.last and message.reasoning_content")
    answers = learned(tokenizer, thoughtful(thinking="first") + thoughtful(thinking="second"), last_only)
    assert answers == ["eight<|im_end|>", "<think>second</think>eight<|im_end|>"]


def test_a_system_message_that_the_template_omits_is_an_error(tokenizer):
    shown = "{% for message in messages if message.role != 'system' or message.content == 'a' %}"
    first_only = CHATML.replace("{% for message in messages %}", shown)
    chat = [{"role": "system", "content": "a"}, *HELLO]
    assert learned(tokenizer, chat, first_only) == ["eight<|im_end|>"]
    with pytest.raises(UserError, match="row 7: the chat template omits a system message"):
        learned(tokenizer, [*chat, {"role": "system", "content": "now be rude"}, *HELLO], first_only)
    assert len(learned(tokenizer, [*chat, {"role": "system", "content": "now be rude"}, *HELLO], CHATML)) == 2


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


def test_the_system_message_comes_after_the_definitions(tokenizer):
    chat = with_system(messages_of({"messages": HELLO, "tools": [TOOL]}, 0), "Be kind.")
    assert [message["role"] for message in chat] == ["tools", "system", "user", "assistant"]
    assert with_system(chat, "Be rude.") == chat
    assert why_unusable(chat) == ""
    assert cleaned(chat, Clean(unicode="NFKC"))[0] == chat[0]


def test_definitions_that_the_template_omits_are_an_error(tokenizer):
    with pytest.raises(UserError, match="row 7: the chat template omits the definition of the tool `weather`"):
        learned(tokenizer, messages_of({"messages": HELLO, "tools": [TOOL]}, 0), CHATML)
