"""Passwords, tokens and signatures in URLs are not repeated in messages and in what is published."""

from __future__ import annotations

import re
from typing import Any

MASK = "***"
# `$NAME` is no password: it names the environment variable that has it.
_PASSWORD = re.compile(r"(://[^/?#\s:@]*:)(?!\$\{?\w+\}?@)[^\s@]+(?=@)")
_WEB_USER = re.compile(r"(https?://)[^/?#\s:@]+(?=@)", re.IGNORECASE)
_PARAMETER = re.compile(
    r"([?&][\w.-]*(?:token|secret|password|passwd|pwd|signature|credential|api_?key|access_?key|sig|auth)[\w.-]*=)[^&#\s]+",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """Returns the text without the passwords of URLs in it, and without parameters of theirs that are called secrets."""
    if "://" not in text:
        return text
    text = _PASSWORD.sub(rf"\1{MASK}", text)
    return _PARAMETER.sub(rf"\1{MASK}", _WEB_USER.sub(rf"\1{MASK}", text))


def masked_values(value: Any) -> Any:
    """Returns the JSON value with every text in it masked."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {key: masked_values(entry) for key, entry in value.items()}
    return [masked_values(entry) for entry in value] if isinstance(value, list) else value
