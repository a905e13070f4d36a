"""Lists that were written into a table's cell as text: pandas writes Python's notation, numpy its own, others JSON."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_NUMPY_TEXTS = re.compile(rf"\[\s*(?:(?:{_QUOTED})\s+)*(?:{_QUOTED})\s*\]")
_NUMPY_NUMBERS = re.compile(r"\[\s*(?:-?[0-9]+(?:\.[0-9]*)?\s+)+-?[0-9]+(?:\.[0-9]*)?\s*\]")
_ADJACENT = re.compile(rf"(?:{_QUOTED})\s+(?={_QUOTED})")
_BEGINS_LIST = re.compile(r"""\[\s*['"]""")


def parse_list(text: str) -> list[Any] | None:
    """Returns the list of texts and numbers that a text is in JSON's, Python's or numpy's notation, or None."""
    text = text.strip()
    if not (text.startswith(("[", "(")) and text.endswith(("]", ")"))):
        return None
    if _NUMPY_TEXTS.fullmatch(text):
        return [ast.literal_eval(quoted) for quoted in re.findall(_QUOTED, text)]
    if _NUMPY_NUMBERS.fullmatch(text):
        return [float(number) if "." in number else int(number) for number in text[1:-1].split()]
    if _ADJACENT.search(text):  # Python would join the two texts to one
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
        if isinstance(value, (list, tuple)) and all(
            item is None or isinstance(item, (str, int, float)) for item in value
        ):
            return list(value)
    return None


def is_broken_list(text: str) -> bool:
    """Checks whether a text begins as a list of quoted texts and yet is none."""
    return bool(_BEGINS_LIST.match(text.strip())) and parse_list(text) is None
