"""A web server on this machine that notes what it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]  # names in small letters


@dataclass
class Web:
    address: str
    folder: Path  # what it serves
    requests: list[Request] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)  # path -> address
    pages: dict[str, bytes] = field(default_factory=dict)  # path -> what is served in place of a file


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: Any, web: Web, **options: Any) -> None:
        self.web = web
        super().__init__(*arguments, directory=str(web.folder), **options)

    def do_GET(self) -> None:
        self.web.requests.append(Request(self.path, {name.lower(): value for name, value in self.headers.items()}))
        if self.path in self.web.redirects:
            self.send_response(302)
            self.send_header("Location", self.web.redirects[self.path])
            self.end_headers()
        elif self.path in self.web.pages:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(self.web.pages[self.path])
        else:
            super().do_GET()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Web]:
    folder.mkdir(exist_ok=True)
    web = Web("", folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, web=web)) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        web.address = f"http://127.0.0.1:{server.server_port}"
        yield web
        server.shutdown()
