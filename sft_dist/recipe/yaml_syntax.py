"""Plain words for the errors of the YAML parser: what is wrong in the text, and what to do."""

from __future__ import annotations

from typing import Any

import yaml

from sft_dist.recipe.errors import Mark, Problem

# Part of a message of libyaml or PyYAML -> what is wrong, and what to do.
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
    ("invalid unicode character", "an escape that is not a character", "remove it"),
    ("unknown directive", "a line cannot begin with `%`", "remove it"),
    ("undefined tag handle", "YAML tags are not used in recipes", "remove the tag, or put the text in quotes"),
    ("<document start>", "the recipe ended before this", "check the indentation"),
)


def syntax_problem(error: yaml.MarkedYAMLError, text: str, file: str, unclosed: Any | None) -> Problem:
    """Returns the problem in the text. `unclosed` is the start of the innermost `[` or `{` that was open at the error."""
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    reason = str(error.problem or error.context or "").lower()
    if any(
        phrase in reason for phrase in ("unexpected end of stream", "expected ',' or", "could not find expected ':'")
    ):
        mark = error.context_mark or mark  # the place where it was opened helps more than the end
        line, column = (mark.line, mark.column) if mark else (line, column)
    lines = text.split("\n")
    if unclosed and not "\n".join([lines[line][column:], *lines[line + 1 :]] if line < len(lines) else []).strip():
        reason = "expected ',' or ']'" if isinstance(unclosed, yaml.SequenceStartEvent) else "expected ',' or '}'"
        line, column = unclosed.start_mark.line, unclosed.start_mark.column
    row = lines[line] if line < len(lines) else ""
    indent = row[: len(row) - len(row.lstrip())]
    if "\t" in indent:
        message, hint = "a tab is used as indentation", "YAML allows only spaces there"
        return Problem(message, mark=Mark(file, line + 1, indent.index("\t") + 1), hint=hint)
    message, hint = _explain(reason, row[column : column + 1])
    return Problem(message, mark=Mark(file, line + 1, column + 1), hint=hint)


def _explain(reason: str, character: str) -> tuple[str, str]:
    """Returns (message, hint)."""
    if "cannot start any token" in reason:
        if character == "\t":
            return "a tab stands where a value should begin", "use spaces"
        return f"a value cannot begin with `{character}`", "put the text in quotes"
    for pattern, message, hint in _SYNTAX:
        if pattern in reason:
            return message, hint
    return f"not valid YAML: {reason}", ""
