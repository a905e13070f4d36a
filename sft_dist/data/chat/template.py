"""Conversations by a tokenizer's chat template: their text, and their tokens with a mark on those of the answers.

What belongs to an answer is known exactly, never guessed from the look of the text: either the template marks it
(`{% generation %}`), or the conversation is rendered up to each answer, and the tokens so far must be the first tokens of the
whole.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from sft_dist.data.chat.messages import answers_in, is_trained
from sft_dist.data.chat.turns import REASONING, TOOLS, Message
from sft_dist.recipe.errors import Problem, UserError

# For tokenizers that have no template: plain headings, and the end-of-text token where an answer ends.
PLAIN_TEMPLATE = (
    "{% if bos_token and bos_token != eos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}{{ '### ' + message['role'] | capitalize + ':\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)

_MARKS_ANSWERS = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Tokens:
    """One conversation."""

    ids: list[int]
    answer: list[bool]  # the token is the assistant's, its end-of-turn token included


def tokenize_chats(
    chats: list[list[Message]],  # each with an answer
    tokenizer: PreTrainedTokenizerBase,
    numbers: Sequence[int],  # row numbers, for messages
) -> list[Tokens]:
    """By the tokenizer's template. Raises UserError naming the row the template refuses, or whose answers cannot be located."""
    if _MARKS_ANSWERS.search(tokenizer.get_chat_template()):
        return [_by_marks(chat, tokenizer, number) for chat, number in zip(chats, numbers, strict=True)]
    return _by_prefixes(chats, tokenizer, numbers)


def _by_marks(chat: list[Message], tokenizer: PreTrainedTokenizerBase, number: int) -> Tokens:
    render(chat, tokenizer, number)
    encoded = _applied(chat, tokenizer, number, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    marked = Tokens(list(encoded["input_ids"]), [bool(is_answer) for is_answer in encoded["assistant_masks"]])
    if all(map(is_trained, chat)):
        return marked
    # The template marks all answers; which turn a token belongs to only the prefixes tell.
    (trained,) = _by_prefixes([chat], tokenizer, [number])
    return Tokens(marked.ids, [mark and inside for mark, inside in zip(marked.answer, trained.answer, strict=True)])


def _by_prefixes(
    chats: list[list[Message]], tokenizer: PreTrainedTokenizerBase, numbers: Sequence[int]
) -> list[Tokens]:
    texts: list[
        str
    ] = []  # of each chat: the whole, for each answer the text before it, for all but the last that with it
    for chat, number in zip(chats, numbers, strict=True):
        texts.append(render(chat, tokenizer, number))
        for turn in answers_in(chat):
            texts.append(render(chat[:turn], tokenizer, number, prompt=True))
            if turn < len(chat) - 1:
                texts.append(render(chat[: turn + 1], tokenizer, number))
    encoded = iter(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
    special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    marked_chats = []
    for chat, number in zip(chats, numbers, strict=True):
        full = next(encoded)
        spans = [(next(encoded), next(encoded) if turn < len(chat) - 1 else full) for turn in answers_in(chat)]
        trained = [is_trained(chat[turn]) for turn in answers_in(chat)]
        marked_chats.append(_marked(full, spans, trained, tokenizer, special, number))
    return marked_chats


def _marked(
    ids: list[int],
    spans: list[tuple[list[int], list[int]]],  # for each answer: the tokens before it, and those until it ends
    trained: list[bool],  # of each answer
    tokenizer: PreTrainedTokenizerBase,
    special: set[int],
    number: int,
) -> Tokens:
    answer = [False] * len(ids)
    # The token that ends a turn, as the last answer shows it: the last special one.
    stop = next((token for token in reversed(ids[len(spans[-1][0]) :]) if token in special), None)
    for before, until in itertools.compress(spans, trained):
        start, end = len(before), len(until)
        if ids[:start] != before:
            raise _not_a_prefix(number)
        if ids[:end] != until:
            # Some templates write a last answer otherwise than one with a turn after it (Qwen3 cuts thoughts out).
            if stop is None or stop not in ids[start:]:
                raise _not_a_prefix(number)
            end = ids.index(stop, start) + 1
        end = _without_line_break(ids, start, end, tokenizer, special)
        answer[start:end] = [True] * (end - start)
    return Tokens(ids, answer)


def _without_line_break(
    ids: list[int], start: int, end: int, tokenizer: PreTrainedTokenizerBase, special: set[int]
) -> int:
    """Where the answer's end-of-turn token is; the line break that templates write after it is never generated."""
    last = end
    while last > start and ids[last - 1] not in special and tokenizer.decode(ids[last - 1]).isspace():
        last -= 1
    return last if last > start and ids[last - 1] in special else end


def _not_a_prefix(number: int) -> UserError:
    return UserError(
        Problem(
            f"row {number}: the chat template renders earlier turns differently once the answer is "
            "appended, so the answer's tokens cannot be located",
            "task.chat_template",
            hint="give a template that marks answers with {% generation %} ... {% endgeneration %} (task.chat_template)",
        )
    )


def render(messages: list[Message], tokenizer: PreTrainedTokenizerBase, number: int, prompt: bool = False) -> str:
    """The text of a conversation; `prompt`: up to where the assistant's next answer begins. Raises UserError."""
    text = _applied(messages, tokenizer, number, tokenize=False, add_generation_prompt=prompt)
    if omitted := next(_omissions(messages, text), None):
        message = f"row {number}: the chat template omits {omitted}"
        hint = "use a model whose template knows it, or a template of your own (task.chat_template)"
        raise UserError(Problem(message, "task.chat_template", hint=hint))
    return text


def _omissions(messages: list[Message], text: str) -> Iterator[str]:
    """What templates skip silently. Thoughts before earlier answers may be missing: many templates cut them out."""
    for tool in _definitions(messages) or ():
        if _name(tool) not in text:
            yield f"the definition of the tool `{_name(tool)}`"
    for message in messages:
        yield from (
            f"the tool call `{_name(call)}`" for call in message.get("tool_calls", ()) if _name(call) not in text
        )
        if message["role"] == "system" and message["content"].strip() not in text:
            yield "a system message"
    if messages[-1].get("reasoning_content", "").strip() not in text:
        yield "the reasoning of an answer (reasoning_content)"


def _applied(messages: list[Message], tokenizer: PreTrainedTokenizerBase, number: int, **options: Any) -> Any:
    chat = _for_template(messages)
    options["tools"] = _definitions(messages)
    with _refusals(number):
        if any("tool_calls" in message for message in chat) and _expects_text(chat, tokenizer):
            chat = [_with_text_arguments(message) for message in chat]
        return tokenizer.apply_chat_template(chat, **options)


def _for_template(messages: list[Message]) -> list[Message]:
    """With the reasoning under each of the names that templates read."""
    return [
        {key: value for key, value in message.items() if key != "train"}
        | dict.fromkeys(REASONING if "reasoning_content" in message else (), message.get("reasoning_content"))
        for message in messages
        if message["role"] != TOOLS
    ]


def _definitions(messages: list[Message]) -> list[dict[str, Any]] | None:
    return json.loads(messages[0]["content"]) if messages[0]["role"] == TOOLS else None


def _expects_text(chat: list[Message], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template writes arguments as they are (DeepSeek's): objects fail there, or come out as Python's."""
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False)
    except TypeError:
        return True
    functions = [call.get("function") or call for message in chat for call in message.get("tool_calls", ())]
    return any(function["arguments"] and str(function["arguments"]) in text for function in functions)


def _with_text_arguments(message: Message) -> Message:
    def converted(call: dict[str, Any]) -> dict[str, Any]:
        if "function" in call:
            return {**call, "function": converted(call["function"])}
        return {**call, "arguments": json.dumps(call["arguments"], ensure_ascii=False)}

    return (
        {**message, "tool_calls": list(map(converted, message["tool_calls"]))} if "tool_calls" in message else message
    )


def _name(call: Any) -> str:
    return str((call.get("function") or call).get("name", ""))


class _refusals:
    """Templates refuse conversations (two user turns in a row, a system message) by an exception of Jinja's."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from jinja2.exceptions import TemplateError, UndefinedError

        if isinstance(error, UndefinedError | TemplateError | TypeError | ValueError):
            message = f"row {self.number}: the chat template refuses the conversation: {error}"
            raise UserError(
                Problem(message, "task.chat_template", hint="correct the row, or give another template")
            ) from error
