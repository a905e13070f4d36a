"""Small files that several processes read and write, the cache, and the files that travel with this program."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import IO, Any

from sft_dist.recipe.errors import Problem, UserError

MAX_JSON_BYTES = 2**30
_BLOCK_BYTES = 2**20


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Replaces a file with a text, as `write_bytes` does."""
    write_bytes(path, text.encode(), durable)


def write_bytes(path: Path, content: bytes, durable: bool = True) -> None:
    """Replaces a file at once: a reader sees the old content or the new one. The file is private to its owner.

    Unless `durable`, a power cut may lose it.
    """
    folder, name = os.path.split(path)
    staging = os.path.join(
        folder, f".{name}.{os.getpid()}"
    )  # strings: as paths this takes a tenth of sealing many runs
    descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(staging, path)


def write_json(path: Path, value: Any) -> None:
    """Replaces a file with a value in JSON."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def digest_of(stream: IO[bytes], digest: Any) -> Any:
    """Returns a digest of `hashlib` or `xxhash` after all of a stream, which is read in blocks."""
    while block := stream.read(_BLOCK_BYTES):
        digest.update(block)
    return digest


def irregular(path: str | os.PathLike[str]) -> str:
    """Returns "a named pipe", "a socket" or "a device" where a path is that, else an empty text. Opens nothing: to read a pipe may
    take forever, and a device need not end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return ""
    return _IRREGULAR.get(stat.S_IFMT(mode), "")


_IRREGULAR = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_json(path: Path) -> Any | None:
    """Returns the file's value; None if it is missing or incomplete, or no file of a size that this program writes."""
    try:
        if irregular(path) or os.path.getsize(path) > MAX_JSON_BYTES:
            return None
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_object(path: Path) -> dict[str, Any]:
    """Returns the file's JSON object; empty where `read_json` reads none."""
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def require_safe_owner(folder: Path) -> None:
    """Raises UserError for a folder of another user into which everyone may write: anybody decides what is in it."""
    try:
        status = folder.stat()
    except FileNotFoundError:
        return
    if status.st_uid != os.geteuid() and status.st_mode & stat.S_IWOTH:
        message = f"{folder} belongs to another user, and everyone may write into it"
        raise UserError(Problem(message, hint="make a copy of your own where you trust what is in it"))


def cache_root() -> Path:
    """Returns the cache folder: $SFT_DIST_CACHE, else ~/.cache/sft-dist."""
    if folder := os.environ.get("SFT_DIST_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sft-dist"


def append_line(path: Path, line: str) -> None:
    """Appends a line in one write, so that lines of two processes never mix."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, (line + "\n").encode())
    finally:
        os.close(descriptor)


def shipped(*parts: str) -> Path:
    """Returns a file or folder that travels with this program: `shipped("recipes")`, in a wheel or in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "_shipped"
    return (inside if inside.is_dir() else package.parent).joinpath(*parts)
