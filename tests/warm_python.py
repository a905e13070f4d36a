"""A Python that starts in milliseconds: it runs each program in a fork of a server that has imported the libraries once.

Importing torch, transformers and datasets takes most of the time of a small program. Tests whose subject is what programs do, not how they
start, put the script that `WarmPython` writes in place of `sys.executable`. It takes `-m MODULE`, `-c PROGRAM` and a file, like Python;
arguments, environment, working folder, standard streams, signals and exit code are those of a process of its own. Modules of this
project are never imported by the server, so that PYTHONPATH decides about them as usual.

Other than in a process of its own, the parent of a program is the server, and the libraries have read the server's environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
MAX_REQUEST = 1 << 22  # bytes

# What runs in place of Python. It imports as little as possible, and waits for the exit code.
CLIENT = """\
#!{python} -IS
import array, json, os, signal, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
for number in {signals!r}:
    signal.signal(number, lambda number, frame: connection.send(bytes([number])))
umask = os.umask(0)
request = json.dumps([sys.argv, dict(os.environ), os.getcwd(), umask]).encode()
descriptors = array.array("i", [0, 1, 2]).tobytes()
connection.sendmsg([len(request).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
connection.sendall(request)
code = connection.recv(4)
code = int.from_bytes(code, "big", signed=True) if code else 1
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


class WarmPython:
    """The server's process, and `executable`, the script to start instead of Python."""

    def __init__(self, folder: Path) -> None:
        self.executable = folder / "python"
        address = str(folder / "server")
        self.executable.write_text(
            CLIENT.format(python=sys.executable, address=address, signals=list(map(int, FORWARDED)))
        )
        self.executable.chmod(0o755)
        command = [sys.executable, __file__, address, str(self.executable)]
        self._server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self._server.stdout is not None
        if self._server.stdout.readline() != b"ready\n":
            raise RuntimeError("the server of warm programs did not start")

    def close(self) -> None:
        self._server.kill()
        self._server.wait()


def serve(address: str, executable: str) -> NoReturn:
    """Forks a program for each connection, and tells its exit code."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    wake_up, wake_up_end = socket.socketpair()
    for end in (wake_up, wake_up_end):
        end.setblocking(False)
    signal.set_wakeup_fd(wake_up_end.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(wake_up, selectors.EVENT_READ)
    programs: dict[int, socket.socket] = {}
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                connection, _ = listener.accept()
                if pid := _start(connection, executable):
                    programs[pid] = connection
                    selector.register(connection, selectors.EVENT_READ, pid)
            elif key.fileobj is wake_up:
                with contextlib.suppress(BlockingIOError):
                    wake_up.recv(4096)
                _report_ended(programs, selector)
            elif key.data in programs:
                _forward_signals(key.fileobj, key.data, selector)


def _start(connection: socket.socket, executable: str) -> int | None:
    """Returns the program's process id, or None where the request is incomplete."""
    try:
        size, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
        request = b""
        while size and len(request) < int.from_bytes(size, "big"):
            request += connection.recv(MAX_REQUEST)
        argv, environment, folder, umask = json.loads(request)
    except (OSError, ValueError):
        connection.close()
        return None
    if not (pid := os.fork()):
        _become(argv, environment, folder, umask, descriptors, executable)
    for descriptor in descriptors:
        os.close(descriptor)
    return pid


def _report_ended(programs: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    while programs:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        connection = programs.pop(pid)
        with contextlib.suppress(KeyError):
            selector.unregister(connection)
        with contextlib.suppress(OSError):
            connection.send(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
        connection.close()


def _forward_signals(connection: Any, pid: int, selector: selectors.BaseSelector) -> None:
    """A client that is gone was killed; its program is then, too."""
    try:
        numbers = connection.recv(64)
    except OSError:
        numbers = b""
    if not numbers:
        selector.unregister(connection)
    for number in numbers or [signal.SIGKILL]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _become(
    argv: list[str], environment: dict[str, str], folder: str, umask: int, descriptors: list[int], executable: str
) -> NoReturn:
    """In the fork: what a new Python would do before and after the program."""
    import atexit
    import tempfile
    import threading

    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.closerange(3, 256)
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.umask(umask)
    tempfile.tempdir = None
    sys.executable = executable
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    _limit_threads()
    code = _exit_code(argv[1:])
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _limit_threads() -> None:
    import torch

    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))


def _exit_code(words: list[str]) -> int:
    try:
        _run(words)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return 1
    return 0


def _run(words: list[str]) -> None:
    """Python's own command line: `[-u] -m MODULE`, `-c PROGRAM` or a file, and its arguments."""
    import runpy

    if words[0] == "-u":
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
        words = words[1:]
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if words[0] in ("-m", "-c"):
        sys.path[:1] = [os.getcwd(), *paths]
        sys.argv = [words[0], *words[2:]]
    else:
        sys.path[:1] = [str(Path(words[0]).resolve().parent), *paths]
        sys.argv = words
    if words[0] == "-m":
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        exec(compile(words[1], "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        runpy.run_path(words[0], run_name="__main__")


def _import_libraries() -> None:
    """Importing starts no threads that a fork would lose."""
    import gc
    import importlib

    for name in (
        "torch", "torch._dynamo", "transformers", "accelerate", "accelerate.commands.launch", "datasets", "sklearn.metrics",
        "sklearn.model_selection", "transformers.models.bert.modeling_bert", "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto", "pydantic", "click",
    ):  # fmt: skip
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(ImportError):
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        get_checkpoint_conversion_mapping("")  # compiles 900 regular expressions, once a process
    gc.freeze()  # or each collection of a fork would go through all that was imported, and copy its pages


if __name__ == "__main__":
    _import_libraries()
    serve(*sys.argv[1:])
