"""Rows of conversations in any shape -> OpenAI's: a list of `{"role", "content"}`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sft_dist.data.chat.turns import (
    EMPTY,
    TOOLS,
    TURN_KEYS,
    Message,
    bad_value,
    decoded,
    message_of,
    tools_of,
    turns_of,
)
from sft_dist.data.clean import clean_text, plain_text
from sft_dist.recipe.schema import Clean
from sft_dist.recipe.tasks.instruction_tuning import ANSWERS, CONTEXTS, CONVERSATIONS, QUESTIONS, SYSTEMS, TOOL_COLUMNS


def messages_of(row: Mapping[str, Any], number: int) -> list[Message]:
    """A source row of any known shape -> its messages, [] where it has none.

    CONVERSATIONS: turns as `{role, content}` (OpenAI) or `{from, value}` (ShareGPT), or texts of user and assistant in turn
    (UltraChat), also as JSON text. Else a pair of QUESTIONS with CONTEXTS and ANSWERS, after the pairs of `history`; prompt and
    completion may be lists of turns. Raises UserError naming the row.
    """
    present = {role: value for role, value in row.items() if value not in EMPTY}
    tools = tools_of(present.get(_first(TOOL_COLUMNS, present)), number)
    if column := _first(CONVERSATIONS, present):
        turns = turns_of(present[column], column, number, bool(tools))
    else:
        turns = _pair(present, number)
    turns = with_system(turns, present.get(_first(SYSTEMS, present)))
    return [message_of(TOOLS, json.dumps(tools, ensure_ascii=False)), *turns] if tools and turns else turns


def _first(roles: Sequence[str], present: Mapping[str, Any]) -> str:
    return next((role for role in roles if role in present), "")


def _pair(present: Mapping[str, Any], number: int) -> list[Message]:
    """A question with its answer, after those of `history`."""
    turns = []
    for pair in present.get("history", []):
        if not isinstance(pair, Sequence) or [type(text) for text in pair] != [str, str]:
            raise bad_value(number, "history", "pairs of question and answer are needed", pair)
        turns += [message_of("user", pair[0]), message_of("assistant", pair[1])]
    question, answer = _first(QUESTIONS, present), _first(ANSWERS, present)
    others = [role for role in ANSWERS if role in present and present[role] != present[answer]]
    if others:
        example = f"{{{others[0]}: {answer}}}"
        message = (
            f"several columns have an answer: {', '.join([answer, *others])}; choose by data.columns, as in {example}"
        )
        raise bad_value(number, others[0], message, present[others[0]])
    for role in (question, answer):
        if isinstance(present.get(role), list) and all(isinstance(text, str) for text in map(decoded, present[role])):
            raise bad_value(
                number, role, "a text, or a list of turns with `role` and `content`, is needed", present[role]
            )
    if isinstance(present.get(question), list):
        turns += turns_of(present[question], question, number)
    elif texts := [plain_text(present[role], role, number) for role in (question, *CONTEXTS) if role in present]:
        turns.append(message_of("user", "\n".join(texts)))
    if isinstance(present.get(answer), list):
        return turns + turns_of(present[answer], answer, number)
    return turns + ([message_of("assistant", plain_text(present[answer], answer, number))] if answer else [])


def unread_keys(row: Mapping[str, Any]) -> Iterator[str]:
    """Names of what a row has and `messages_of` does not read: columns, and keys of turns as `messages.KEY`."""
    present = {role: value for role, value in row.items() if value not in EMPTY}
    read = {_first(SYSTEMS, present), _first(TOOL_COLUMNS, present)}
    if column := _first(CONVERSATIONS, present):
        read.add(column)
        turns = present[column]
        turns = json.loads(turns) if isinstance(turns, str) else turns
        keys = {
            key for turn in map(decoded, turns) if isinstance(turn, Mapping) for key in turn if turn[key] not in EMPTY
        }
        yield from sorted(f"{column}.{key}" for key in keys - TURN_KEYS)
    else:
        read |= {_first(QUESTIONS, present), *CONTEXTS, *ANSWERS, "history"}
    yield from sorted(set(present) - read)


def cleaned(messages: list[Message], clean: Clean) -> list[Message]:
    """What is said, not the tools' definitions and arguments: those are data."""
    texts = ("content", "reasoning_content")
    return [
        {
            key: clean_text(value, clean) if key in texts and message["role"] != TOOLS else value
            for key, value in message.items()
        }
        for message in messages
    ]


def with_system(messages: list[Message], system: str | None) -> list[Message]:
    """A system message before those that have none."""
    if messages and messages[0]["role"] == TOOLS:
        return [messages[0], *with_system(messages[1:], system)]
    if not system or not messages or messages[0]["role"] == "system":
        return messages
    return [message_of("system", system), *messages]


def why_unusable(messages: list[Message]) -> str:
    """Why a conversation cannot be trained on, "" when it can: an answer or a question is missing or empty. One empty answer
    is enough: it teaches the model to say nothing."""
    if not messages:
        return "empty conversation"
    answers = [messages[turn] for turn in answers_in(messages) if is_trained(messages[turn])]
    if not answers:
        return "no answer"
    if not all(message["content"].strip() or message.get("tool_calls") for message in answers):
        return "empty answer"
    first = next(message["role"] for message in messages if message["role"] not in ("system", TOOLS))
    if first == "assistant":
        return "begins with an answer"
    questions = [message["content"] for message in messages if message["role"] == "user"]
    return "" if all(map(str.strip, questions)) else "empty text"


def is_trained(message: Message) -> bool:
    """Whether the loss counts the message if it is an answer; otherwise it is context."""
    return bool(message.get("train", True))


def answers_in(chat: list[Message]) -> Iterator[int]:
    return (turn for turn, message in enumerate(chat) if message["role"] == "assistant")


def until_last_answer(messages: list[Message]) -> list[Message]:
    """Without the turns that nobody answers."""
    return messages[: 1 + max(answers_in(messages))]
