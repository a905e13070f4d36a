"""Bash templates of the job scripts: files that bash, editors and shellcheck read as the scripts they are.

A field is written `@name@`, which bash takes for a word. A line that consists of an empty field disappears.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_FIELD = re.compile(r"^@([a-z_]+)@\n|@([a-z_]+)@", re.MULTILINE)


@cache
def read_template(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def fields_of(template: str) -> set[str]:
    return {line or word for line, word in _FIELD.findall(template)}


def fill(name: str, fields: Mapping[str, object]) -> str:
    """Returns the template with its fields filled in. Values are inserted as they are, and may look like a field. Raises
    ValueError unless `fields` are those of the template."""
    template = read_template(name)
    if different := fields.keys() ^ fields_of(template):
        raise ValueError(f"{name}: fields differ from those given: {', '.join(sorted(different))}")

    def value(match: re.Match[str]) -> str:
        text = str(fields[match[1] or match[2]])
        return f"{text}\n" if match[1] and text else text

    return _FIELD.sub(value, template)
