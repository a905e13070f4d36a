"""`sft-dist board`: the report's page of all runs, kept up to date, for the browser on this machine alone.

Read-only: it answers GET with the page and its data, and knows no other path and no other method. Only a program on this machine can
connect (loopback), only one that knows the token in the address is answered, and a web page of another origin can do neither: the
Host header must be this server's own, so a name that is made to point to 127.0.0.1 (DNS rebinding) is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sys
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from launch.report.page import render_page
from launch.report.write import packed_data
from launch.run_state import states_of
from sft_dist.recipe.errors import UserError

ADDRESS = "127.0.0.1"
MIN_AGE_S = 3.0  # however many pages ask, the files are read no more often
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Snapshot:
    """The newest data of the page, read again when it is old."""

    def __init__(self, read: Callable[[], bytes], clock: Callable[[], float] = time.monotonic) -> None:
        self._read, self._clock, self._lock = read, clock, threading.Lock()
        self._content, self._time = read(), clock()

    def content(self) -> bytes:
        with self._lock:
            if self._clock() - self._time >= MIN_AGE_S:
                self._content, self._time = self._read(), self._clock()
            return self._content


class Board(ThreadingHTTPServer):
    """Serves the page under `/TOKEN/` and its data under `/TOKEN/data`."""

    daemon_threads = True

    def __init__(self, snapshot: Snapshot, port: int = 0) -> None:
        super().__init__((ADDRESS, port), _Handler)
        self.snapshot = snapshot
        self.token = secrets.token_urlsafe(24)
        self.page = render_page(b"", "board", {"connect-src": "'self'"}).encode()

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints nothing of a page that was closed before it had its answer."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    @property
    def hosts(self) -> tuple[str, ...]:
        """What a browser that was given the address says in its Host header."""
        return (f"{ADDRESS}:{self.server_port}", f"localhost:{self.server_port}")


class _Handler(BaseHTTPRequestHandler):
    server: Board
    server_version, sys_version = "sft-dist", ""
    timeout = 30  # seconds; a connection that sends nothing does not keep its thread

    def do_GET(self) -> None:
        if self.headers.get("Host") not in self.server.hosts:
            return self._answer(HTTPStatus.FORBIDDEN, b"", "text/plain")
        if self._is_path(""):
            return self._answer(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")
        if self._is_path("data"):
            return self._send_data()
        return self._answer(HTTPStatus.NOT_FOUND, b"", "text/plain")

    def _is_path(self, name: str) -> bool:
        """Compared in constant time: the time of the answer says nothing of the token."""
        return hmac.compare_digest(self.path.encode(), f"/{self.server.token}/{name}".encode())

    def _send_data(self) -> None:
        try:
            content = self.server.snapshot.content()
        except (UserError, OSError):  # its runs were removed: the page says so, and asks again
            return self._answer(HTTPStatus.SERVICE_UNAVAILABLE, b"", "text/plain")
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        if self.headers.get("If-None-Match") == tag:
            return self._answer(HTTPStatus.NOT_MODIFIED, b"", "application/json", ETag=tag)
        return self._answer(HTTPStatus.OK, content, "application/json", ETag=tag, **{"Content-Encoding": "gzip"})

    def _answer(self, status: HTTPStatus, content: bytes, kind: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing: the address with its token belongs in no log."""


def open_board(targets: Sequence[str], runs: str | None, port: int) -> Board:
    """Returns the server, not yet serving. Raises UserError when a target is no run and when the port is in use."""
    snapshot = Snapshot(lambda: packed_data(states_of(targets, runs)))
    try:
        return Board(snapshot, port)
    except OSError as error:
        raise UserError(f"port {port} cannot be used ({error.strerror}); name another with --port") from error


def serve(board: Board) -> None:
    """Answers until Ctrl-C."""
    try:
        board.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        board.server_close()
