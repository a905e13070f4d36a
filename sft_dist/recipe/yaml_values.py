"""Scalars by the YAML 1.2 core schema, in which `1e-4` is a number and `no` is text. PyYAML's own rules are those of YAML 1.1,
where both are the other way round."""

from __future__ import annotations

import re
from typing import Any

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


def parse_scalar(text: str) -> Any:
    """Returns the value of an unquoted scalar."""
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


def to_yaml(value: Any) -> str:
    """Returns a value in YAML, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value if value and value.isprintable() and parse_scalar(value) == value else repr(value)
    if isinstance(value, list):
        return f"[{', '.join(to_yaml(item) for item in value[:20])}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {to_yaml(item)}' for key, item in list(value.items())[:20])}}}"
    return str(value)
