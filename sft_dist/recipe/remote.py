"""What tells one state of data that lie elsewhere from another.

Whoever holds them is asked, once a process and for a few seconds at most, and the answer is remembered in the cache. Where
there is no answer, as on a node without a network, the last one counts: what was prepared where there is one is found.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.files import cache_root, read_json, write_json

log = logging.getLogger("sft_dist")

# Filesystems that data are read from. Others run what they find (`python`, `reference`), reach into programs, or unpack
# without a limit. `memory` holds what this very process has put there.
PROTOCOLS = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "file", "memory")
ANSWER_S = 5.0
# What filesystems call that which changes with a file, small and without `-` and `_`. Not its address: it may be signed anew.
_MARKS = {
    "size", "etag", "contentmd5", "digest", "lastmodified", "mtime", "modified", "modify", "updated", "created", "md5",
    "md5hash", "crc32c", "checksum", "sha", "generation", "versionid", "blobid",
}  # fmt: skip
_COMMIT = re.compile(r"[0-9a-f]{40}")


def require_known_protocol(url: str) -> None:
    """Raises UserError unless fsspec may open the URL."""
    if "::" in url:
        hint = "download and unpack it, and name the file or folder"
        raise UserError(Problem("chained URLs are not read", "data.source", value=url, hint=hint))
    if url.partition("://")[0].lower() not in PROTOCOLS:
        raise UserError(Problem("data are not read by this protocol", "data.source", value=url, valid=PROTOCOLS))


def state_of_url(url: str) -> str:
    """Of the file, folder (a URL that ends with `/`) or files of a glob behind a URL; empty when it was never known."""
    return _known(url, lambda: _listed(url))


def state_of_hub(name: str, revision: str | None) -> str:
    """The commit of a data set on the hub; empty when it was never known."""
    if revision and _COMMIT.fullmatch(revision):
        return revision
    return _known(f"hub:{name}@{revision or ''}", lambda: _commit(name, revision))


def state_of_server(address: str, anew: bool) -> str:
    """Nothing tells whether a database has changed. Whoever plans takes it for changed (`anew`), once a process; the
    processes of the run that then begins take what was planned."""
    address = hashlib.sha256(address.encode()).hexdigest()  # it may hold a password
    return _known(address, lambda: secrets.token_hex(8)) if anew else _last(address)


def marks(system: Any, names: Iterable[str]) -> str:
    """What an fsspec filesystem says of files that changes with their content."""
    return json.dumps([[name, _marks(system.info(name))] for name in sorted(names)], sort_keys=True)


def _marks(info: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in info.items() if re.sub("[-_]", "", name.lower()) in _MARKS}


_asked: dict[tuple[Path, str], str] = {}


def _known(address: str, ask: Callable[[], str]) -> str:
    """The answer now, else the last one."""
    key = cache_root(), address
    if key not in _asked:
        _asked[key] = _in_time(address, ask)
        if _asked[key]:
            _remember(address, _asked[key])
        else:
            _asked[key] = _last(address)
    return _asked[key]


def _in_time(address: str, ask: Callable[[], str]) -> str:
    """Empty when there is no answer. Filesystems wait for minutes, each in its own way, so this does not wait for them."""
    answers: list[str] = []

    def wait() -> None:
        try:
            answers.append(ask())
        except Exception as error:  # every filesystem has its own
            log.debug("the state of %s is not known: %s", address, error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    return answers[0] if answers else ""


def _remember(address: str, state: str) -> None:
    try:
        _file(address).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(_file(address), {"state": state})
    except OSError:
        pass  # then the data are asked for their state again


def _last(address: str) -> str:
    return str((read_json(_file(address)) or {}).get("state", ""))


def _file(address: str) -> Path:
    return cache_root() / "states" / f"{hashlib.sha256(address.encode()).hexdigest()[:32]}.json"


def _listed(url: str) -> str:
    import fsspec

    require_known_protocol(url)
    system, path = fsspec.core.url_to_fs(url)
    names = [path]
    if url.endswith("/"):
        names = system.find(path)
    elif any(sign in path for sign in "*["):  # `?` begins the query of a web address
        names = system.glob(path)
    # Some filesystems list nothing where they reach nobody.
    return hashlib.sha256(marks(system, names).encode()).hexdigest() if names else ""


def _commit(name: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    return HfApi().dataset_info(name, revision=revision, timeout=ANSWER_S).sha or ""
