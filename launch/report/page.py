"""The page as one HTML file: no network, no text of the data as HTML, and a policy that lets the browser enforce both."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
MAX_LEVELS = 30  # of nested values
STYLES = ("vendor/uPlot.min.css", "style.css")
SCRIPTS = (
    "vendor/uPlot.iife.min.js",
    "dom.js",
    "tables.js",
    "curves.js",
    "matrix.js",
    "search.js",
    "scores.js",
    "classes.js",
    "slices.js",
    "runs.js",
    "app.js",
)


def render_page(data: bytes, title: str, extra_sources: Mapping[str, str] | None = None) -> str:
    """Returns the page. `data`: of `pack`, or empty where the page fetches it; `extra_sources`: directives of the policy beside those
    of a page without network."""
    styles = [_read(name) for name in STYLES]
    scripts = [_read(name) for name in SCRIPTS]
    values = {
        "policy": policy(styles, scripts, extra_sources or {}),
        "title": html.escape(title.encode(errors="replace").decode()),
        "styles": "\n".join(f"<style>{style}</style>" for style in styles),
        "data": base64.b64encode(data).decode(),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    # Replaced in one pass, so that a value is never searched for another placeholder.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], _read("page.html"))


def policy(styles: Sequence[str], scripts: Sequence[str], extra_sources: Mapping[str, str]) -> str:
    """Returns the Content-Security-Policy: only these very styles and scripts, and nothing from anywhere."""
    directives = {
        "default-src": "'none'",
        "script-src": " ".join(map(_source_hash, scripts)),
        "style-src": " ".join(map(_source_hash, styles)),
        "base-uri": "'none'",
        "form-action": "'none'",
        **extra_sources,
    }
    return "; ".join(f"{name} {sources}" for name, sources in directives.items())


def _source_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def pack(data: Mapping[str, Any]) -> bytes:
    """Returns the data as compressed JSON. NaN and infinity are no JSON, and become null, as does what is nested too deeply."""
    text = json.dumps(_plain(data), ensure_ascii=False, separators=(",", ":"))
    # Half a surrogate pair, in a label or the name of a folder, is not UTF-8; escaped it is JSON.
    return gzip.compress(text.encode(errors="backslashreplace"), mtime=0)


def _plain(value: Any, levels: int = MAX_LEVELS) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {str(key): _plain(inner, levels - 1) for key, inner in value.items()} if levels else None
    if isinstance(value, list | tuple):
        return [_plain(inner, levels - 1) for inner in value] if levels else None
    return value
