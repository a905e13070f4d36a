"""How two images are recognised as the same one."""

from __future__ import annotations

from typing import Any

import xxhash

from sft_dist.data.media import MediaError, is_url, open_media
from sft_dist.recipe.files import digest_of


def content(image: dict[str, Any]) -> bytes:
    """A hash of the file as it is, so that the same image under two names is one."""
    path = str(image.get("path"))
    if image.get("bytes") is None and is_url(path):  # told apart by its address: nothing is downloaded for this
        return xxhash.xxh128_digest(path.encode())
    try:
        with open_media(image) as file:
            return bytes(digest_of(file, xxhash.xxh128()).digest())
    except (MediaError, OSError):  # `check` says so
        return xxhash.xxh128_digest(path.encode())
