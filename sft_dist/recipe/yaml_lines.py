"""YAML with the place of every key and value, so that an error can name the line of a mistake.

Only mappings, lists, text, numbers, booleans and null are ever made, and every error in the text is reported at once. Depth, size
and aliases are limited, so no file can exhaust the stack or the memory.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from sft_dist.recipe.errors import Mark, Problem, UserError
from sft_dist.recipe.suggest import neighbours_of, similar_to
from sft_dist.recipe.yaml_syntax import syntax_problem
from sft_dist.recipe.yaml_values import parse_scalar

KeyPath = tuple[Any, ...]  # ("train", "lr"), ("data", "labels", 0)

MOST_BYTES = 2**20
MOST_DEPTH = 50
MOST_NODES = 100_000  # counted with every alias written out, so a file cannot grow in memory

_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_UNPRINTABLE: re.Pattern[str] = yaml.reader.Reader.NON_PRINTABLE  # what YAML does not allow, escaped or not
_UNUSABLE = re.compile("[\x00\ud800-\udfff]")  # from escapes in quotes; no path or label can hold them
_REFUSED = object()  # stands for a key that is wrong; its value is read and dropped


@dataclass(frozen=True)
class Document:
    """The content of a file and the place of each value: a scalar's own, or the key of a mapping or list."""

    data: Any
    keys: dict[KeyPath, Mark] = field(default_factory=dict)
    values: dict[KeyPath, Mark] = field(default_factory=dict)
    texts: dict[KeyPath, str] = field(default_factory=dict)  # numbers, booleans and null as they were written


def read_yaml(path: Path, name: str | None = None) -> Document:
    """Reads the mapping in a YAML file; `name` is its name in messages. Raises UserError with every problem found."""
    file = name or str(path)
    raw = _read_bytes(path, file)
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
    """Parses one YAML document of any kind. Raises UserError with every problem found."""
    if bad := _UNPRINTABLE.search(text):
        line = text.count("\n", 0, bad.start()) + 1
        column = bad.start() - text.rfind("\n", 0, bad.start())
        character = "NUL byte" if bad[0] == "\0" else f"control character U+{ord(bad[0]):04X}"
        raise UserError(Problem(f"{character} in the text", mark=Mark(file, line, column), hint="remove it"))
    composer = _Composer(text, file)
    data = None
    try:
        data = composer.compose()
    except yaml.MarkedYAMLError as error:
        composer.problems.append(syntax_problem(error, text, file, composer.unclosed_bracket()))
    except yaml.YAMLError as error:
        composer.problems.append(Problem(f"not valid YAML: {error}", mark=Mark(file, 1, 1)))
    if composer.problems:
        raise UserError(composer.problems)
    return Document(data, composer.keys, composer.values, composer.texts)


def _read_bytes(path: Path, file: str) -> bytes:
    mark = Mark(file)
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            inside = sorted(entry.name for entry in path.iterdir() if entry.suffix in (".yaml", ".yml"))
            raise UserError(Problem("is a folder; a recipe is a file", mark=mark, valid=tuple(inside[:20])))
        if not stat.S_ISREG(kind):
            raise UserError(Problem("is not a regular file", mark=mark))
        with path.open("rb") as stream:
            raw = stream.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise UserError(Problem("no such file", mark=mark, hint=neighbours_of(path))) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(Problem(f"cannot be read: {reason}", mark=mark)) from None
    if len(raw) > MOST_BYTES:
        size = path.stat().st_size / 2**20
        raise UserError(
            Problem(f"has {size:.1f} MiB; a recipe has at most 1 MiB", mark=mark, hint="is it a data file?")
        )
    return raw


class _Composer:
    """Turns the parser's events into values. It descends at most MOST_DEPTH levels."""

    def __init__(self, text: str, file: str) -> None:
        self.keys: dict[KeyPath, Mark] = {}
        self.values: dict[KeyPath, Mark] = {}
        self.texts: dict[KeyPath, str] = {}
        self.problems: list[Problem] = []
        self._file = file
        self._events: Iterator[Any] = yaml.parse(text, Loader=_PARSER)
        self._open: list[Any] = []  # start events of mappings and lists whose end was not read yet
        self._anchors: dict[str, tuple[Any, int]] = {}  # name -> (value, its number of nodes)
        self._num_nodes = 0

    def compose(self) -> Any:
        """Returns the document's value. Raises UserError where reading cannot continue."""
        data, num_documents = None, 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                num_documents += 1
                if num_documents > 1:
                    hint = "a recipe is one document; remove the `---`"
                    self._stop("a second document (`---`) in one file", self._mark(event), hint)
            elif isinstance(event, yaml.NodeEvent):
                data = self._value(event, ())
        return data

    def unclosed_bracket(self) -> yaml.Event | None:
        """Returns the start of the innermost mapping or list that is open, if it began with `[` or `{`."""
        return self._open[-1] if self._open and self._open[-1].flow_style else None

    def _value(self, event: Any, path: KeyPath) -> Any:
        mark = self._mark(event)
        self.values[path] = mark
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, mark)
        if isinstance(event, yaml.CollectionStartEvent):
            return self._collection(event, path, mark)
        value = self._scalar(event, mark)
        if not isinstance(value, str):
            self.texts[path] = event.value
        if event.anchor:
            self._anchors[event.anchor] = (value, 1)
        return value

    def _scalar(self, event: Any, mark: Mark) -> Any:
        self._check_tag(event.tag, mark)
        self._count(1, mark)
        value = parse_scalar(event.value) if _is_plain(event) else event.value
        if isinstance(value, str) and _UNUSABLE.search(value):
            self._problem("text with a NUL character or half a surrogate pair", mark, "remove the escape")
            return ""
        return value

    def _collection(self, event: Any, path: KeyPath, mark: Mark) -> Any:
        self._check_tag(event.tag, mark)
        num_before = self._num_nodes
        self._count(1, mark)
        if len(self._open) >= MOST_DEPTH:
            self._stop(f"nested more than {MOST_DEPTH} levels deep", mark)
        self._open.append(event)
        value = self._mapping(path) if isinstance(event, yaml.MappingStartEvent) else self._list(path)
        self._open.pop()
        if event.anchor:
            self._anchors[event.anchor] = (value, self._num_nodes - num_before)
        return value

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event, path, mapping)
            inner = (*path, key)
            value = self._value(next(self._events), inner)
            if key is not _REFUSED:
                mapping[key] = value
                if isinstance(value, (dict, list)):
                    self.values[inner] = self.keys[inner]
        return mapping

    def _list(self, path: KeyPath) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            values.append(self._value(event, (*path, len(values))))
        return values

    def _key(self, event: Any, path: KeyPath, mapping: dict[str, Any]) -> Any:
        mark = self._mark(event)
        if isinstance(event, yaml.CollectionStartEvent):
            kind = "mapping" if isinstance(event, yaml.MappingStartEvent) else "list"
            self._problem(f"a key must be text, found a {kind}", mark, "text with { or [ needs quotes")
            self._collection(event, (*path, _REFUSED), mark)
            return _REFUSED
        if isinstance(event, yaml.AliasEvent):
            self._alias(event, mark)
            self._problem("a key must be text, found an alias", mark)
            return _REFUSED
        key = self._scalar(event, mark)
        if key == "<<" and _is_plain(event):
            self._problem("merge keys (`<<`) are not used in recipes", mark, "name a parent recipe with `base:`")
        elif not isinstance(key, str):
            text = event.value
            self._problem(f"a key must be text, found {text or '(nothing)'}", mark, f'put it in quotes: "{text}"', path)
        elif key in mapping:
            self._problem("the same key twice", mark, f"the first one is at {self.keys[(*path, key)]}", (*path, key))
        else:
            self.keys[(*path, key)] = mark
            return key
        return _REFUSED

    def _alias(self, event: Any, mark: Mark) -> Any:
        name = str(event.anchor)
        if any(start.anchor == name for start in self._open):
            self._stop(f"`*{name}` refers to the value it stands in", mark)
        value, num_nodes = self._anchors.get(name, (None, 1))
        if name not in self._anchors:
            hint = similar_to(name, self._anchors) or "text that begins with `*` needs quotes"
            self._problem(f"no anchor `&{name}` before this", mark, hint)
        self._count(num_nodes, mark)
        return value

    def _check_tag(self, tag: str | None, mark: Mark) -> None:
        if tag not in (None, "!"):
            short = str(tag).replace("tag:yaml.org,2002:", "!!")
            self._problem(f"YAML tags are not used in recipes: `{short}`", mark, "remove the tag")

    def _count(self, num_nodes: int, mark: Mark) -> None:
        self._num_nodes += num_nodes
        if self._num_nodes > MOST_NODES:
            self._stop(f"more than {MOST_NODES:,} values, aliases written out", mark, "a recipe is small; is this one?")

    def _problem(self, message: str, mark: Mark, hint: str = "", path: KeyPath = ()) -> None:
        dotted = ".".join(str(key) for key in path if key is not _REFUSED)
        self.problems.append(Problem(message, dotted, mark=mark, hint=hint))

    def _stop(self, message: str, mark: Mark, hint: str = "") -> NoReturn:
        self._problem(message, mark, hint)
        raise UserError(self.problems)

    def _mark(self, event: Any) -> Mark:
        return Mark(self._file, event.start_mark.line + 1, event.start_mark.column + 1)


def _is_plain(event: Any) -> bool:
    return bool(event.implicit[0] and not event.style)
