"""Tag schemes: how tags mark where an entity begins, continues and ends.

Scores are computed on IOBES tags with the marker first, so each scheme is a mapping of its tags to those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

OUTSIDE = "O"
PLAIN = "plain tags, each word an entity of its own"
BARE_TYPE = "entity"  # of markers without a type

_MARKER = "[BIMESLU]"
_FORMS = {  # way of writing a marker and a type -> pattern of a tag
    "": re.compile(rf"(?P<marker>{_MARKER})-(?P<type>.+)", re.IGNORECASE),
    "underscore": re.compile(rf"(?P<marker>{_MARKER})_(?P<type>.+)", re.IGNORECASE),
    "slash": re.compile(rf"(?P<marker>{_MARKER})/(?P<type>.+)", re.IGNORECASE),
    "colon": re.compile(rf"(?P<marker>{_MARKER}):(?P<type>.+)", re.IGNORECASE),
    "suffix": re.compile(rf"(?P<type>.+)-(?P<marker>{_MARKER})"),
    "underscore suffix": re.compile(rf"(?P<type>.+)_(?P<marker>{_MARKER})"),
    "bare": re.compile(rf"(?P<marker>{_MARKER})(?P<type>)", re.IGNORECASE),
}
_NORMAL = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S"}
_FAMILIES = {"BIO": "BI", "BIOES": "BIES", "BILOU": "BILU", "BMES": "BMES"}  # scheme -> its markers


@dataclass(frozen=True)
class TagScheme:
    name: str
    iobes: Mapping[str, str]  # tag -> IOBES tag

    def normalize(self, tags: Iterable[str]) -> list[str]:
        return [self.iobes.get(tag, OUTSIDE) for tag in tags]

    @property
    def marks_entities(self) -> bool:
        return self.name != PLAIN


class MixedTags(ValueError):
    """Most tags are of one scheme, and some are not."""

    def __init__(self, scheme: str, odd: list[str]) -> None:
        super().__init__(f"most tags are {scheme}, and {', '.join(odd[:10])} are not")
        self.odd = odd


def tag_scheme(names: Iterable[str]) -> TagScheme:
    """Recognizes the scheme of a set of tags. Raises MixedTags where some tags do not fit the scheme of the others."""
    tags = set(names)
    outside = {tag for tag in tags if tag in ("O", "o")}
    entity_tags = sorted(tags - outside)
    matches = {form: _matches(form, entity_tags) for form in _FORMS}
    form = max(matches, key=lambda form: len(matches[form]))
    markers = {marker for marker, _ in matches[form].values()}
    is_certain = form != "bare" and _continues_a_type(matches[form].values())
    if not is_certain and not _is_scheme(form, markers, len(matches[form]), len(entity_tags), bool(outside)):
        plain = {tag: f"B-{tag}" for tag in entity_tags}
        return TagScheme(PLAIN, {**plain, **dict.fromkeys(outside, OUTSIDE)})
    family = next((name for name, letters in _FAMILIES.items() if markers <= set(letters)), None)
    name = ", ".join(filter(None, (family, form)))
    odd = sorted(set(entity_tags) - set(matches[form]))
    if len(outside) > 1:
        odd.append("o")
    if odd:
        raise MixedTags(name or "of one scheme", odd)
    if family is None:
        foreign = {"L", "U"} if {"E", "S"} <= markers else {"E", "S", "M"}
        raise MixedTags(
            "of one scheme", [tag for tag, (marker, _) in matches[form].items() if marker in foreign] or entity_tags
        )
    iobes = {tag: f"{_NORMAL[marker]}-{kind or BARE_TYPE}" for tag, (marker, kind) in matches[form].items()}
    return TagScheme(name, {**iobes, **dict.fromkeys(outside, OUTSIDE)})


def _matches(form: str, tags: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Tag -> marker and type, of the tags that are written so."""
    matches = ((tag, _FORMS[form].fullmatch(tag)) for tag in tags)
    return {tag: (match["marker"].upper(), match["type"]) for tag, match in matches if match}


def _continues_a_type(markers_and_types: Iterable[tuple[str, str]]) -> bool:
    """Whether the same type begins and continues, which is never by chance."""
    types_by_marker: dict[bool, set[str]] = {True: set(), False: set()}
    for marker, kind in markers_and_types:
        types_by_marker[marker == "B"].add(kind)
    return bool(types_by_marker[True] & types_by_marker[False])


def _is_scheme(form: str, markers: set[str], num_matches: int, num_tags: int, has_outside: bool) -> bool:
    """Parts of speech may look like a marked tag by chance: a scheme marks how entities begin or continue, and most of
    its tags do; without an outside tag all of them."""
    if not markers & {"B", "I", "S", "U"} or (form == "bare" and not has_outside):
        return False
    return 2 * num_matches > num_tags if has_outside else num_matches == num_tags or num_matches >= 0.75 * num_tags
