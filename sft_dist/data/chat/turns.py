"""A turn of a conversation and the definitions of tools, in the forms that data sets have -> OpenAI's messages."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sft_dist.recipe.errors import Problem, UserError

# "role" and "content"; what OpenAI's tool calls add: "tool_calls", "tool_call_id", "name"; "reasoning_content"; "train":
# False where an answer is context only. A conversation with tools begins with a message of the role TOOLS, whose content is
# the JSON text of their definitions.
Message = dict[str, Any]

TOOLS = "tools"

# What data sets call the speakers -> what chat templates call them.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}

# Keys of a turn by which data sets exclude an answer from training: OpenAI's, axolotl's, LLaMA-Factory's.
TRAINED = ("weight", "train", "loss")

TEXT_PARTS = ("text", "input_text", "output_text")  # types of parts that a message's content may have

# What data sets and chat templates call the thoughts before an answer.
REASONING = ("reasoning_content", "thinking", "reasoning")

# Keys of a turn that are read.
TURN_KEYS = {
    "role", "from", "content", "value", "tool_calls", "function_call", "tool_call_id", "name", *REASONING, *TRAINED
}  # fmt: skip

# Keys that say what is learned, or from what, in a way that has no equivalent.
REFUSED_KEYS = (
    "mask", "masked", "loss_mask", "loss_scale", "loss_weight", "trainable", "train_detail", "training_detail", "refusal",
    "tools", "functions", "image", "images", "audio", "audios", "video", "videos",
)  # fmt: skip

EMPTY: tuple[Any, ...] = (None, "", [], {})


def message_of(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def turns_of(value: Any, column: str, number: int, has_tools: bool = False) -> list[Message]:
    if isinstance(value, str):
        value = _parsed(value, "not a conversation", column, number)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise bad_value(number, column, "a list of turns is needed", value)
    value = [decoded(turn) for turn in value]
    if value and all(isinstance(turn, str) for turn in value):
        return [
            message_of(role, text) for role, text in zip(itertools.cycle(("user", "assistant")), value, strict=False)
        ]
    return [_turn(turn, column, number, has_tools) for turn in value]


def decoded(turn: Any) -> Any:
    """A turn that is JSON text, as a list of texts in a table keeps turns with different keys; others as they are."""
    if not isinstance(turn, str) or not turn.startswith("{"):
        return turn
    try:
        decoded = json.loads(turn)
    except (ValueError, RecursionError):
        return turn
    return decoded if {"role", "from"} & set(decoded) else turn


def _turn(turn: Any, column: str, number: int, has_tools: bool) -> Message:
    if not isinstance(turn, Mapping) or not {"role", "from"} & set(turn):
        raise bad_value(number, column, "a turn has `role` and `content`, or `from` and `value`", turn)
    if refused := [key for key in REFUSED_KEYS if turn.get(key) not in EMPTY]:
        raise bad_value(number, column, f"`{refused[0]}` of a turn is not supported, and changes what is learned", turn)
    for first, second in (("role", "from"), ("content", "value")):
        values = [turn[key] for key in (first, second) if turn.get(key) not in EMPTY]
        if len({str(ROLES.get(value, value)) if first == "role" else str(value) for value in values}) > 1:
            raise bad_value(number, column, f"`{first}` and `{second}` of a turn differ", turn)
    sharegpt = turn.get("from") is not None
    speaker = turn["from"] if sharegpt else turn.get("role")
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise bad_value(number, column, "unknown role", speaker, tuple(ROLES))
    content = turn.get("value" if sharegpt else "content")
    if speaker == "function_call" and has_tools:  # LLaMA-Factory's: the text is the call
        turn, content = {**turn, "tool_calls": _as_calls(content, column, number)}, None
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(_text_of(piece, column, number) for piece in content)
    calls = _calls(turn, column, number)
    if not isinstance(content, str) and not (content is None and calls):
        raise bad_value(number, column, "a turn without text", turn)
    extras = {key: turn[key] for key in ("tool_call_id", "name") if turn.get(key)}
    if calls:
        extras["tool_calls"] = calls
    if reasoning := _reasoning(turn, column, number):
        extras["reasoning_content"] = reasoning
    trained = {} if _is_trained(turn, ROLES[speaker], column, number) else {"train": False}
    return {**message_of(ROLES[speaker], content or ""), **extras, **trained}


def _text_of(piece: Any, column: str, number: int) -> str:
    """OpenAI's content may be a list of parts; only texts can be trained on here."""
    if isinstance(piece, str):
        return piece
    is_text = isinstance(piece, Mapping) and (piece.get("type") or "text") in TEXT_PARTS
    if is_text and isinstance(piece.get("text"), str):
        return piece["text"]
    raise bad_value(number, column, "a part of a message that is not text", piece)


def _reasoning(turn: Mapping[str, Any], column: str, number: int) -> str:
    texts = [turn[key] for key in REASONING if turn.get(key)]
    if not all(isinstance(text, str) for text in texts):
        raise bad_value(number, column, "the reasoning of a turn is text", turn)
    if len(set(texts)) > 1:
        raise bad_value(number, column, f"a turn has one reasoning, but {' and '.join(REASONING)} differ", turn)
    return texts[0] if texts else ""


def _is_trained(turn: Mapping[str, Any], role: str, column: str, number: int) -> bool:
    flags = {key: turn[key] for key in TRAINED if turn.get(key) is not None}
    for key, flag in flags.items():
        if flag not in (0, 1):
            raise bad_value(number, column, f"`{key}` of a turn is 0 or 1, or false or true", flag)
    if role != "assistant":
        if flags.get("train"):
            raise bad_value(number, column, "only turns of the assistant are trained on, but `train` is true", turn)
        return True
    if len(set(map(bool, flags.values()))) > 1:
        raise bad_value(
            number, column, f"{', '.join(f'`{key}`' for key in flags)} of a turn contradict each other", turn
        )
    return all(flags.values())


def _calls(turn: Mapping[str, Any], column: str, number: int) -> list[dict[str, Any]]:
    """Tool calls with arguments as objects, which chat templates expect; OpenAI's API and most data sets have JSON text."""
    calls = turn.get("tool_calls")
    if not calls and turn.get("function_call"):  # OpenAI's format before there were several calls in a turn
        calls = [{"type": "function", "function": turn["function_call"]}]
    if isinstance(calls, str):
        calls = _parsed(calls, "`tool_calls` are not JSON", column, number)
    if not isinstance(calls or [], Sequence):
        raise bad_value(number, column, "`tool_calls` is a list", calls)
    return [_call(call, column, number) for call in calls or []]


def _as_calls(text: Any, column: str, number: int) -> list[Any]:
    calls = _parsed(text, "a function_call is not JSON", column, number) if isinstance(text, str) else text
    calls = calls if isinstance(calls, list) else [calls]
    return [{"type": "function", "function": call} for call in calls]


def _call(call: Any, column: str, number: int) -> dict[str, Any]:
    function = call.get("function") or call if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise bad_value(number, column, "a tool call has a function with `name` and `arguments`", call)
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = _parsed(arguments, "the arguments of a tool call are not JSON", column, number)
    if not isinstance(arguments, Mapping):
        raise bad_value(number, column, "the arguments of a tool call are an object", arguments)
    function = {**function, "arguments": dict(arguments)}
    return {**call, "function": function} if call.get("function") else function


def tools_of(definitions: Any, number: int) -> list[dict[str, Any]]:
    """Definitions of tools as chat templates expect them: each an object with `type` and `function`."""
    if isinstance(definitions, str):
        definitions = _parsed(definitions, "the definitions of tools are not JSON", TOOLS, number)
    if isinstance(definitions, Mapping):
        definitions = [definitions]
    return [_tool(definition, number) for definition in definitions or []]


def _tool(definition: Any, number: int) -> dict[str, Any]:
    if isinstance(definition, str):
        definition = _parsed(definition, "the definition of a tool is not JSON", TOOLS, number)
    function = definition.get("function") or definition if isinstance(definition, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise bad_value(number, TOOLS, "a tool has a function with `name`, `description` and `parameters`", definition)
    definition = definition if definition.get("function") else {"type": "function", "function": definition}
    return dict(_without_nulls(definition))


def _without_nulls(value: Any) -> Any:
    """Without the nulls of tables, whose rows have the keys of all rows."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(entry) for key, entry in value.items() if entry is not None}
    return [_without_nulls(entry) for entry in value] if isinstance(value, list) else value


def _parsed(text: str, message: str, column: str, number: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise bad_value(number, column, f"{message}: {error}", text) from error


def bad_value(number: int, column: str, message: str, value: Any, valid: tuple[str, ...] = ()) -> UserError:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return UserError(Problem(f"row {number}: {message}", f"data.columns.{column}", value=text[:200], valid=valid))
