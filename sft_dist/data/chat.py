"""Conversations: the shapes they come in, and their tokens with a mark on those the model is to learn to say.

Every shape becomes OpenAI's: a list of `{"role", "content"}`. The text of a conversation is made by the tokenizer's chat
template alone. What belongs to an answer is known exactly, never guessed from the look of the text: either the template
marks it (`{% generation %}`), or the conversation is rendered up to each answer, and the tokens so far must be the first
tokens of the whole.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from sft_dist.data.clean import clean_text, plain_text
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.schema import Clean
from sft_dist.recipe.tasks.instruction_tuning import ANSWERS, CONTEXTS, CONVERSATIONS, QUESTIONS, SYSTEMS, TOOL_COLUMNS

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


# ── shapes ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def messages_of(row: Mapping[str, Any], number: int) -> list[Message]:
    """A source row of any known shape -> its messages, [] where it has none.

    CONVERSATIONS: turns as `{role, content}` (OpenAI) or `{from, value}` (ShareGPT), or texts of user and assistant in turn
    (UltraChat), also as JSON text. Else a pair of QUESTIONS with CONTEXTS and ANSWERS, after the pairs of `history`; prompt and
    completion may be lists of turns. Raises UserError naming the row.
    """
    present = {role: value for role, value in row.items() if value not in EMPTY}
    tools = _tools(present.get(_first(TOOL_COLUMNS, present)), number)
    if column := _first(CONVERSATIONS, present):
        turns = _turns(present[column], column, number, bool(tools))
    else:
        turns = _pair(present, number)
    turns = with_system(turns, present.get(_first(SYSTEMS, present)))
    return [_message(TOOLS, json.dumps(tools, ensure_ascii=False)), *turns] if tools and turns else turns


def _first(roles: Sequence[str], present: Mapping[str, Any]) -> str:
    return next((role for role in roles if role in present), "")


def _pair(present: Mapping[str, Any], number: int) -> list[Message]:
    """A question with its answer, after those of `history`."""
    turns = []
    for pair in present.get("history", []):
        if not isinstance(pair, Sequence) or [type(text) for text in pair] != [str, str]:
            raise _broken(number, "history", "pairs of question and answer are needed", pair)
        turns += [_message("user", pair[0]), _message("assistant", pair[1])]
    question, answer = _first(QUESTIONS, present), _first(ANSWERS, present)
    others = [role for role in ANSWERS if role in present and present[role] != present[answer]]
    if others:
        example = f"{{{others[0]}: {answer}}}"
        message = (
            f"several columns have an answer: {', '.join([answer, *others])}; choose by data.columns, as in {example}"
        )
        raise _broken(number, others[0], message, present[others[0]])
    for role in (question, answer):
        if isinstance(present.get(role), list) and all(isinstance(text, str) for text in map(_decoded, present[role])):
            raise _broken(
                number, role, "a text, or a list of turns with `role` and `content`, is needed", present[role]
            )
    if isinstance(present.get(question), list):
        turns += _turns(present[question], question, number)
    elif texts := [plain_text(present[role], role, number) for role in (question, *CONTEXTS) if role in present]:
        turns.append(_message("user", "\n".join(texts)))
    if isinstance(present.get(answer), list):
        return turns + _turns(present[answer], answer, number)
    return turns + ([_message("assistant", plain_text(present[answer], answer, number))] if answer else [])


def unread(row: Mapping[str, Any]) -> Iterator[str]:
    """Names of what a row has and `messages_of` does not read: columns, and keys of turns as `messages.KEY`."""
    present = {role: value for role, value in row.items() if value not in EMPTY}
    read = {_first(SYSTEMS, present), _first(TOOL_COLUMNS, present)}
    if column := _first(CONVERSATIONS, present):
        read.add(column)
        turns = present[column]
        turns = json.loads(turns) if isinstance(turns, str) else turns
        keys = {
            key for turn in map(_decoded, turns) if isinstance(turn, Mapping) for key in turn if turn[key] not in EMPTY
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
    return [_message("system", system), *messages]


def _tools(definitions: Any, number: int) -> list[dict[str, Any]]:
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
        raise _broken(number, TOOLS, "a tool has a function with `name`, `description` and `parameters`", definition)
    definition = definition if definition.get("function") else {"type": "function", "function": definition}
    return dict(_without_nulls(definition))


def _without_nulls(value: Any) -> Any:
    """Without the nulls of tables, whose rows have the keys of all rows."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(entry) for key, entry in value.items() if entry is not None}
    return [_without_nulls(entry) for entry in value] if isinstance(value, list) else value


def _turns(value: Any, column: str, number: int, has_tools: bool = False) -> list[Message]:
    if isinstance(value, str):
        value = _parsed(value, "not a conversation", column, number)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _broken(number, column, "a list of turns is needed", value)
    value = [_decoded(turn) for turn in value]
    if value and all(isinstance(turn, str) for turn in value):
        return [_message(role, text) for role, text in zip(itertools.cycle(("user", "assistant")), value, strict=False)]
    return [_turn(turn, column, number, has_tools) for turn in value]


def _decoded(turn: Any) -> Any:
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
        raise _broken(number, column, "a turn has `role` and `content`, or `from` and `value`", turn)
    if refused := [key for key in REFUSED_KEYS if turn.get(key) not in EMPTY]:
        raise _broken(number, column, f"`{refused[0]}` of a turn is not supported, and changes what is learned", turn)
    for first, second in (("role", "from"), ("content", "value")):
        values = [turn[key] for key in (first, second) if turn.get(key) not in EMPTY]
        if len({str(ROLES.get(value, value)) if first == "role" else str(value) for value in values}) > 1:
            raise _broken(number, column, f"`{first}` and `{second}` of a turn differ", turn)
    sharegpt = turn.get("from") is not None
    speaker = turn["from"] if sharegpt else turn.get("role")
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise _broken(number, column, "unknown role", speaker, tuple(ROLES))
    content = turn.get("value" if sharegpt else "content")
    if speaker == "function_call" and has_tools:  # LLaMA-Factory's: the text is the call
        turn, content = {**turn, "tool_calls": _as_calls(content, column, number)}, None
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(_text_of(piece, column, number) for piece in content)
    calls = _calls(turn, column, number)
    if not isinstance(content, str) and not (content is None and calls):
        raise _broken(number, column, "a turn without text", turn)
    extras = {key: turn[key] for key in ("tool_call_id", "name") if turn.get(key)}
    if calls:
        extras["tool_calls"] = calls
    if reasoning := _reasoning(turn, column, number):
        extras["reasoning_content"] = reasoning
    trained = {} if _is_trained(turn, ROLES[speaker], column, number) else {"train": False}
    return {**_message(ROLES[speaker], content or ""), **extras, **trained}


def _reasoning(turn: Mapping[str, Any], column: str, number: int) -> str:
    texts = [turn[key] for key in REASONING if turn.get(key)]
    if not all(isinstance(text, str) for text in texts):
        raise _broken(number, column, "the reasoning of a turn is text", turn)
    if len(set(texts)) > 1:
        raise _broken(number, column, f"a turn has one reasoning, but {' and '.join(REASONING)} differ", turn)
    return texts[0] if texts else ""


def _calls(turn: Mapping[str, Any], column: str, number: int) -> list[dict[str, Any]]:
    """Tool calls with arguments as objects, which chat templates expect; OpenAI's API and most data sets have JSON text."""
    calls = turn.get("tool_calls")
    if not calls and turn.get("function_call"):  # OpenAI's format before there were several calls in a turn
        calls = [{"type": "function", "function": turn["function_call"]}]
    if isinstance(calls, str):
        calls = _parsed(calls, "`tool_calls` are not JSON", column, number)
    if not isinstance(calls or [], Sequence):
        raise _broken(number, column, "`tool_calls` is a list", calls)
    return [_call(call, column, number) for call in calls or []]


def _as_calls(text: Any, column: str, number: int) -> list[Any]:
    calls = _parsed(text, "a function_call is not JSON", column, number) if isinstance(text, str) else text
    calls = calls if isinstance(calls, list) else [calls]
    return [{"type": "function", "function": call} for call in calls]


def _call(call: Any, column: str, number: int) -> dict[str, Any]:
    function = call.get("function") or call if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise _broken(number, column, "a tool call has a function with `name` and `arguments`", call)
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = _parsed(arguments, "the arguments of a tool call are not JSON", column, number)
    if not isinstance(arguments, Mapping):
        raise _broken(number, column, "the arguments of a tool call are an object", arguments)
    function = {**function, "arguments": dict(arguments)}
    return {**call, "function": function} if call.get("function") else function


def _parsed(text: str, message: str, column: str, number: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _broken(number, column, f"{message}: {error}", text) from error


def _is_trained(turn: Mapping[str, Any], role: str, column: str, number: int) -> bool:
    flags = {key: turn[key] for key in TRAINED if turn.get(key) is not None}
    for key, flag in flags.items():
        if flag not in (0, 1):
            raise _broken(number, column, f"`{key}` of a turn is 0 or 1, or false or true", flag)
    if role != "assistant":
        if flags.get("train"):
            raise _broken(number, column, "only turns of the assistant are trained on, but `train` is true", turn)
        return True
    if len(set(map(bool, flags.values()))) > 1:
        raise _broken(number, column, f"{', '.join(f'`{key}`' for key in flags)} of a turn contradict each other", turn)
    return all(flags.values())


def _text_of(piece: Any, column: str, number: int) -> str:
    """OpenAI's content may be a list of parts; only texts can be trained on here."""
    if isinstance(piece, str):
        return piece
    is_text = isinstance(piece, Mapping) and (piece.get("type") or "text") in TEXT_PARTS
    if is_text and isinstance(piece.get("text"), str):
        return piece["text"]
    raise _broken(number, column, "a part of a message that is not text", piece)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _broken(number: int, column: str, message: str, value: Any, valid: tuple[str, ...] = ()) -> UserError:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return UserError(Problem(f"row {number}: {message}", f"data.columns.{column}", value=text[:200], valid=valid))


def why_unusable(messages: list[Message]) -> str:
    """Why a conversation cannot be trained on, "" when it can: an answer or a question is missing or empty. One empty answer
    is enough: it teaches the model to say nothing."""
    if not messages:
        return "empty conversation"
    answers = [messages[turn] for turn in _answers(messages) if is_trained(messages[turn])]
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


def until_last_answer(messages: list[Message]) -> list[Message]:
    """Without the turns that nobody answers."""
    return messages[: 1 + max(_answers(messages))]


# ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────────────
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
        for turn in _answers(chat):
            texts.append(render(chat[:turn], tokenizer, number, prompt=True))
            if turn < len(chat) - 1:
                texts.append(render(chat[: turn + 1], tokenizer, number))
    encoded = iter(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
    special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    marked_chats = []
    for chat, number in zip(chats, numbers, strict=True):
        full = next(encoded)
        spans = [(next(encoded), next(encoded) if turn < len(chat) - 1 else full) for turn in _answers(chat)]
        trained = [is_trained(chat[turn]) for turn in _answers(chat)]
        marked_chats.append(_marked(full, spans, trained, tokenizer, special, number))
    return marked_chats


def _answers(chat: list[Message]) -> Iterator[int]:
    return (turn for turn, message in enumerate(chat) if message["role"] == "assistant")


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
