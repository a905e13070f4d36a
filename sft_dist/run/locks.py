"""Locks on files (flock). The kernel releases a lock when the last process that holds its file has ended, however it ended.

A descriptor takes its lock along into the processes that inherit it. Some file systems have no locks (Lustre mounted
without them, NFS without its lock service): there nothing is held, and two processes at the same moment do not see each
other. A lock file is never followed through a symbolic link and never truncated here.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Errors of flock on a file system without locks.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


def open_lock_file(path: Path) -> int:
    """Returns a descriptor of the file, which is made if it does not exist."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def acquire(descriptor: int) -> None:
    """Locks an open file, once no other process holds it."""
    _flock(descriptor, fcntl.LOCK_EX)


def try_acquire(descriptor: int) -> bool:
    """Locks an open file unless another process holds it; returns whether the caller may proceed."""
    return _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def has_locks(descriptor: int) -> bool:
    """Whether the file system of an open file has locks. Locks the file where it can."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in NO_LOCKS
    return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file, which is made if it does not exist."""
    descriptor = open_lock_file(path)
    try:
        acquire(descriptor)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def held(path: Path, wait: bool) -> Iterator[bool]:
    """Locks a file, which is made if it does not exist, unless another process holds it; yields whether the caller may proceed.
    With `wait`, it may, once no other process holds it."""
    descriptor = open_lock_file(path)
    try:
        if wait:
            acquire(descriptor)
        yield wait or try_acquire(descriptor)
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock of a file. False when the file does not exist."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would wait
    except OSError:
        return False
    try:
        return not _flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def _flock(descriptor: int, operation: int) -> bool:
    """Returns False when another process holds the lock."""
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True
