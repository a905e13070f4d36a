"""The state of remote data: a text that changes when a hub data set, a URL or a database changes.

The server is asked once per process, for a few seconds at most, and its answer is kept in the cache. Without an answer, as on a
node without a network, the last one counts: what was prepared where there is a network is then found.
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

# Filesystems that data is read from. Others run what they find (`python`, `reference`), reach into programs, or unpack
# without a limit. `memory` holds what this very process has put there.
PROTOCOLS = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "file", "memory")
ANSWER_S = 5.0
# Names that filesystems give to what changes with a file, in lower case, without `-` and `_`. Not its address: that may be
# signed, and differ each time.
_CHANGING_FIELDS = {
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
        raise UserError(Problem("data is not read by this protocol", "data.source", value=url, valid=PROTOCOLS))


def state_of_url(url: str) -> str:
    """Returns the state of the file, folder (a URL that ends with `/`) or files of a glob; empty when it was never known."""
    return _current_or_last(url, lambda: _state_of_files(url))


def state_of_hub(name: str, revision: str | None) -> str:
    """Returns the commit of a data set on the hub; empty when it was never known."""
    if revision and _COMMIT.fullmatch(revision):
        return revision
    return _current_or_last(f"hub:{name}@{revision or ''}", lambda: _commit(name, revision))


def state_of_server(address: str, replan: bool) -> str:
    """Returns a new random state when a run is planned (`replan`), once per process, and the planned one afterwards.

    Databases do not say whether they have changed.
    """
    address = hashlib.sha256(address.encode()).hexdigest()  # it may hold a password
    return _current_or_last(address, lambda: secrets.token_hex(8)) if replan else _last_state(address)


def marks(system: Any, names: Iterable[str]) -> str:
    """Returns what an fsspec filesystem says of files that changes with their content."""
    return json.dumps([[name, _changing_fields(system.info(name))] for name in sorted(names)], sort_keys=True)


def _changing_fields(info: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in info.items() if re.sub("[-_]", "", name.lower()) in _CHANGING_FIELDS}


_states: dict[tuple[Path, str], str] = {}  # of this process


def _current_or_last(address: str, ask: Callable[[], str]) -> str:
    key = cache_root(), address
    if key not in _states:
        _states[key] = _ask_in_time(address, ask)
        if _states[key]:
            _remember(address, _states[key])
        else:
            _states[key] = _last_state(address)
    return _states[key]


def _ask_in_time(address: str, ask: Callable[[], str]) -> str:
    """Returns the answer, or nothing after ANSWER_S. Filesystems wait for minutes, each in its own way: a thread does that."""
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
        _state_file(address).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(_state_file(address), {"state": state})
    except OSError:
        pass  # the next process asks the server again


def _last_state(address: str) -> str:
    return str((read_json(_state_file(address)) or {}).get("state", ""))


def _state_file(address: str) -> Path:
    return cache_root() / "states" / f"{hashlib.sha256(address.encode()).hexdigest()[:32]}.json"


def _state_of_files(url: str) -> str:
    import fsspec  # only recipes with a URL need it

    require_known_protocol(url)
    system, path = fsspec.core.url_to_fs(url)
    names = [path]
    if url.endswith("/"):
        names = system.find(path)
    elif any(sign in path for sign in "*["):  # `?` begins the query of a web address
        names = system.glob(path)
    # Some filesystems list nothing when they cannot reach their server.
    return hashlib.sha256(marks(system, names).encode()).hexdigest() if names else ""


def _commit(name: str, revision: str | None) -> str:
    from huggingface_hub import HfApi  # only recipes with a hub data set need it

    return HfApi().dataset_info(name, revision=revision, timeout=ANSWER_S).sha or ""
