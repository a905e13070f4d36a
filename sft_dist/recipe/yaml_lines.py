"""YAML with the place of every key and value, so that a mistake can be shown where it stands.

Built from parser events with an explicit stack: no input can exhaust Python's, and nothing is ever constructed but
mappings, lists, text, numbers, booleans and null. Plain scalars follow the YAML 1.2 core schema, in which `1e-4` is a
number and `no` is text; PyYAML's own resolver is YAML 1.1, where both are the other way round.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from sft_dist.recipe.errors import Mark, Problem, UserError
from sft_dist.recipe.suggest import neighbours_of, similar_to

KeyPath = tuple[Any, ...]  # ("train", "lr"), ("data", "labels", 0)

MOST_BYTES = 2**20
MOST_DEPTH = 50
MOST_NODES = 100_000  # counted with every alias written out, so a file cannot grow in memory

_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)$")  # `010` is text: it is 8 to some readers and 10 to others
_HEX = re.compile(r"0x[0-9a-fA-F]+$|0o[0-7]+$")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_LONGEST_NUMBER = 100
_UNPRINTABLE: re.Pattern[str] = yaml.reader.Reader.NON_PRINTABLE  # what YAML does not allow, escaped or not
_UNUSABLE = re.compile("[\x00\ud800-\udfff]")  # from escapes in quotes; no path or label can hold them


@dataclass(frozen=True)
class Document:
    """What was read, and where. A container's place is its key's; a scalar's place is its own."""

    data: Any
    keys: dict[KeyPath, Mark] = field(default_factory=dict)
    values: dict[KeyPath, Mark] = field(default_factory=dict)
    texts: dict[KeyPath, str] = field(default_factory=dict)  # numbers, booleans and null as they were written


def read_yaml(path: Path, shown: str | None = None) -> Document:
    """The mapping in a YAML file; `shown` is its name in messages. Raises UserError with every problem found."""
    file = shown or str(path)
    raw = _bytes_of(path, file)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
        utf16 = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
        raise UserError(
            Problem(
                f"not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}",
                mark=Mark(file, line, column),
                hint="the file looks like UTF-16; save it as UTF-8" if utf16 else "save the file as UTF-8",
            )
        ) from None
    document = parse_yaml(text, file)
    if document.data is None:
        raise UserError(
            Problem("the recipe is empty", mark=Mark(file, 1, 1), hint="`sft-dist init TASK` writes a starter")
        )
    if not isinstance(document.data, dict):
        kind = "a list" if isinstance(document.data, list) else "a single value"
        hint = "expected `key: value` lines, such as `task: text-classification`"
        raise UserError(Problem(f"the recipe is {kind}, not a mapping", mark=document.values[()], hint=hint))
    return document


def parse_yaml(text: str, file: str) -> Document:
    """One YAML document of any kind. Raises UserError with every problem found."""
    if bad := _UNPRINTABLE.search(text):
        line = text.count("\n", 0, bad.start()) + 1
        column = bad.start() - text.rfind("\n", 0, bad.start())
        what = "NUL byte" if bad[0] == "\0" else f"control character U+{ord(bad[0]):04X}"
        raise UserError(Problem(f"{what} in the text", mark=Mark(file, line, column), hint="remove it"))
    builder = _Builder(file)
    try:
        for event in yaml.parse(text, Loader=_PARSER):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        builder.problems.append(_syntax_problem(error, text, file, builder.open_bracket()))
    except yaml.YAMLError as error:
        builder.problems.append(Problem(f"not valid YAML: {error}", mark=Mark(file, 1, 1)))
    if builder.problems:
        raise UserError(builder.problems)
    return Document(builder.root, builder.keys, builder.values, builder.texts)


def parse_scalar(text: str) -> Any:
    """The value of an unquoted scalar by the YAML 1.2 core schema."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] in "+-.0123456789" and len(text) <= _LONGEST_NUMBER:
        if _INT.match(text):
            return int(text)
        if _FLOAT.match(text) and not re.match(r"[-+]?0[0-9]+$", text):
            return float(text)
        if _HEX.match(text):
            return int(text, 0)
    return text


def _bytes_of(path: Path, file: str) -> bytes:
    here = Mark(file)
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            inside = sorted(entry.name for entry in path.iterdir() if entry.suffix in (".yaml", ".yml"))
            raise UserError(Problem("is a folder; a recipe is a file", mark=here, valid=tuple(inside[:20])))
        if not stat.S_ISREG(kind):
            raise UserError(Problem("is not a regular file", mark=here))
        with path.open("rb") as stream:
            raw = stream.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise UserError(Problem("no such file", mark=here, hint=neighbours_of(path))) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(Problem(f"cannot be read: {reason}", mark=here)) from None
    if len(raw) > MOST_BYTES:
        size = path.stat().st_size / 2**20
        raise UserError(
            Problem(f"has {size:.1f} MiB; a recipe has at most 1 MiB", mark=here, hint="is it a data file?")
        )
    return raw


@dataclass
class _Open:
    """A mapping or list whose end was not read yet."""

    value: Any
    path: KeyPath
    anchor: str | None
    nodes_before: int
    mark: Mark
    in_brackets: bool = False
    key: Any = None  # mappings: the key whose value comes next
    has_key: bool = False
    is_key: bool = False  # stands where a key should be; read on only to find its end


_DROPPED = object()  # stands for a key that was refused; its value is read and forgotten


class _Builder:
    """Takes parser events one by one; `root` is the document after the last."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.root: Any = None
        self.keys: dict[KeyPath, Mark] = {}
        self.values: dict[KeyPath, Mark] = {}
        self.texts: dict[KeyPath, str] = {}
        self.problems: list[Problem] = []
        self._stack: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int]] = {}  # name -> (value, its number of nodes)
        self._nodes = 0
        self._documents = 0

    def take(self, event: yaml.Event) -> None:
        at: Any = event.start_mark
        mark = Mark(self.file, at.line + 1, at.column + 1)
        if isinstance(event, yaml.ScalarEvent):
            self._check_tag(event.tag, mark)
            self._scalar(event, mark)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._check_tag(event.tag, mark)
            self._open(event, mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._close()
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event, mark)
        elif isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self._stop("a second document (`---`) in one file", mark, "a recipe is one document; remove the `---`")

    def open_bracket(self) -> _Open | None:
        """The innermost `[` or `{` that was not closed so far."""
        return self._stack[-1] if self._stack and self._stack[-1].in_brackets else None

    def _check_tag(self, tag: str | None, mark: Mark) -> None:
        if tag not in (None, "!"):
            shown = str(tag).replace("tag:yaml.org,2002:", "!!")
            self._problem(f"YAML tags are not used in recipes: `{shown}`", mark, "remove the tag")

    def _problem(self, message: str, mark: Mark, hint: str = "", path: KeyPath = ()) -> None:
        dotted = ".".join(str(part) for part in path if part is not _DROPPED)
        self.problems.append(Problem(message, dotted, mark=mark, hint=hint))

    def _stop(self, message: str, mark: Mark, hint: str = "") -> NoReturn:
        self._problem(message, mark, hint)
        raise UserError(self.problems)

    def _count(self, nodes: int, mark: Mark) -> None:
        self._nodes += nodes
        if self._nodes > MOST_NODES:
            self._stop(f"more than {MOST_NODES:,} values, aliases written out", mark, "a recipe is small; is this one?")

    def _awaits_key(self) -> bool:
        return bool(self._stack) and isinstance(self._stack[-1].value, dict) and not self._stack[-1].has_key

    def _next_path(self) -> KeyPath:
        if not self._stack:
            return ()
        top = self._stack[-1]
        return (*top.path, top.key if isinstance(top.value, dict) else len(top.value))

    def _scalar(self, event: yaml.ScalarEvent, mark: Mark) -> None:
        self._count(1, mark)
        plain = event.implicit[0] and not event.style
        value = parse_scalar(event.value) if plain else event.value
        if isinstance(value, str) and _UNUSABLE.search(value):
            self._problem("text with a NUL character or half a surrogate pair", mark, "remove the escape")
            value = ""
        if self._awaits_key():
            self._key(value, event.value, mark, plain)
            return
        path = self._next_path()
        if not isinstance(value, str):
            self.texts[path] = event.value
        if event.anchor:
            self._anchors[event.anchor] = (value, 1)
        self._place(value, path, mark)

    def _key(self, key: Any, text: str, mark: Mark, plain: bool) -> None:
        top = self._stack[-1]
        top.has_key, top.key = True, _DROPPED
        path = (*top.path, key)
        if key == "<<" and plain:
            self._problem("merge keys (`<<`) are not used in recipes", mark, "name a parent recipe with `base:`")
        elif not isinstance(key, str):
            shown = text or "(nothing)"
            self._problem(f"a key must be text, found {shown}", mark, f'put it in quotes: "{text}"', top.path)
        elif key in top.value:
            first = self.keys[path]
            self._problem("the same key twice", mark, f"the first one is at {first}", path)
        else:
            top.key = key
            self.keys[path] = mark

    def _place(self, value: Any, path: KeyPath, mark: Mark) -> None:
        """Put a value where it belongs: under the waiting key, at the list's end, or as the root."""
        self.values[path] = mark
        if not self._stack:
            self.root = value
            return
        top = self._stack[-1]
        if isinstance(top.value, list):
            top.value.append(value)
            return
        if top.key is not _DROPPED:
            top.value[top.key] = value
            if isinstance(value, (dict, list)):
                self.values[path] = self.keys[path]
        top.has_key = False

    def _open(self, event: yaml.CollectionStartEvent, mark: Mark) -> None:
        self._count(1, mark)
        if len(self._stack) >= MOST_DEPTH:
            self._stop(f"nested more than {MOST_DEPTH} levels deep", mark)
        value: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
        is_key = self._awaits_key()
        path = self._next_path()
        if is_key:
            kind = "mapping" if isinstance(value, dict) else "list"
            self._problem(f"a key must be text, found a {kind}", mark, "text with { or [ needs quotes")
        else:
            self._place(value, path, mark)
            if self._stack and isinstance(self._stack[-1].value, dict):
                self._stack[-1].has_key = True  # until the value's end
        in_brackets = bool(event.flow_style)
        self._stack.append(_Open(value, path, event.anchor, self._nodes - 1, mark, in_brackets, is_key=is_key))

    def _close(self) -> None:
        done = self._stack.pop()
        if done.anchor:
            self._anchors[done.anchor] = (done.value, self._nodes - done.nodes_before)
        if self._stack and isinstance(self._stack[-1].value, dict):
            top = self._stack[-1]
            top.has_key = done.is_key
            if done.is_key:
                top.key = _DROPPED

    def _alias(self, event: yaml.AliasEvent, mark: Mark) -> None:
        name = str(event.anchor)
        if any(entry.anchor == name for entry in self._stack):
            self._stop(f"`*{name}` refers to the value it stands in", mark)
        value, nodes = self._anchors.get(name, (None, 1))
        if name not in self._anchors:
            close = similar_to(name, self._anchors)
            self._problem(f"no anchor `&{name}` before this", mark, close or "text that begins with `*` needs quotes")
        self._count(nodes, mark)
        if self._awaits_key():
            self._problem("a key must be text, found an alias", mark)
            self._stack[-1].has_key, self._stack[-1].key = True, _DROPPED
        else:
            self._place(value, self._next_path(), mark)


# What libyaml and PyYAML say (a part of it) -> what is the matter, and what to do.
_SYNTAX = (
    (
        "mapping values are not allowed",
        "`: ` is not possible here",
        "check the indentation and the line above for a missing `:`, or put the text in quotes",
    ),
    ("could not find expected ':'", "a `:` is missing", "expected `key: value`"),
    ("did not find expected key", "expected a `key: value` line here", "check the indentation and the quotes above"),
    ("expected <block end>", "expected a `key: value` line here", "check the indentation and the quotes above"),
    ("did not find expected '-'", "expected a list item (`- ...`) here", "check the indentation"),
    ("expected ',' or ']'", "a list that began with `[` is not closed", "add `]`, or a `,` between its items"),
    ("expected ',' or '}'", "a mapping that began with `{` is not closed", "add `}`, or a `,` between its keys"),
    ("unexpected end of stream", "a quote is not closed", "add the closing quote"),
    ("expected alphabetic or numeric", "`*` and `&` begin an alias or an anchor", "put the text in quotes"),
    ("unknown escape character", "no such escape (`\\...`) in double quotes", "use single quotes, or double the `\\`"),
    ("expected the node content", "a value is missing here", "check for a `,`, `]` or `}` too many"),
    ("did not find expected node content", "a value is missing here", "check for a `,`, `]` or `}` too many"),
    ("block sequence entries are not allowed", "a list item (`- `) is not possible here", "begin it on a new line"),
    ("block mapping keys are not allowed", "a key is not possible here", "check the indentation"),
    ("invalid unicode character", "an escape that is no character", "remove it"),
    ("unknown directive", "a line cannot begin with `%`", "remove it"),
    ("undefined tag handle", "YAML tags are not used in recipes", "remove the tag, or put the text in quotes"),
    ("<document start>", "the recipe ended before this", "check the indentation"),
)


def _syntax_problem(error: yaml.MarkedYAMLError, text: str, file: str, opened: _Open | None) -> Problem:
    place = error.problem_mark or error.context_mark
    line, column = (place.line, place.column) if place else (0, 0)
    said = str(error.problem or error.context or "").lower()
    message, hint = f"not valid YAML: {said}", ""
    if any(part in said for part in ("unexpected end of stream", "expected ',' or", "could not find expected ':'")):
        place = error.context_mark or place  # where it was opened says more than where it was missed
        line, column = (place.line, place.column) if place else (line, column)
    lines = text.split("\n")
    if opened and not "\n".join([lines[line][column:], *lines[line + 1 :]] if line < len(lines) else []).strip():
        said = (
            "expected ',' or ']'" if isinstance(opened.value, list) else "expected ',' or '}'"
        )  # the text ended in it
        line, column = opened.mark.line - 1, opened.mark.column - 1
    row = lines[line] if line < len(lines) else ""
    indent = row[: len(row) - len(row.lstrip())]
    if "\t" in indent:
        column = indent.index("\t")
        message, hint = "a tab is used as indentation", "YAML allows only spaces there"
    elif "cannot start any token" in said:
        shown = row[column : column + 1]
        message, hint = f"a value cannot begin with `{shown}`", "put the text in quotes"
        if shown == "\t":
            message, hint = "a tab stands where a value should begin", "use spaces"
    else:
        for part, plain, advice in _SYNTAX:
            if part in said:
                message, hint = plain, advice
                break
    return Problem(message, mark=Mark(file, line + 1, column + 1), hint=hint)
