import gzip
import http.client
import json
import threading
from collections.abc import Iterator

import pytest

from launch.report.board import MIN_AGE_S, Board, Snapshot, open_board
from sft_dist.recipe.errors import UserError
from tests.launch.report.run_files import write_run


@pytest.fixture
def board(tmp_path) -> Iterator[Board]:
    write_run(tmp_path)
    server = open_board([], str(tmp_path), port=0)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def request(board: Board, path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", board.server_port, timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    return connection.getresponse()


def test_it_listens_on_loopback_alone(board):
    assert board.server_address[0] == "127.0.0.1"


def test_the_token_gives_the_page_and_its_data(board):
    page = request(board, f"/{board.token}/")
    assert page.status == 200
    text = page.read().decode()
    assert "connect-src 'self'" in text
    assert board.token not in text
    data = request(board, f"/{board.token}/data")
    assert data.getheader("Content-Encoding") == "gzip"
    assert json.loads(gzip.decompress(data.read()))["title"] == "demo"
    assert data.getheader("Cache-Control") == "no-store"


def test_data_that_did_not_change_is_not_sent_again(board):
    first = request(board, f"/{board.token}/data")
    second = request(board, f"/{board.token}/data", If_None_Match=first.getheader("ETag"))
    assert (second.status, second.read()) == (304, b"")


@pytest.mark.parametrize(
    "path",
    ["/", "/data", "/{wrong}/", "/{token}", "/{token}/../", "/{token}/recipe.json", "/{token}/data?x=1"],
)
def test_all_other_paths_are_absent(board, path):
    answer = request(board, path.format(token=board.token, wrong="A" * len(board.token)))
    assert (answer.status, answer.read()) == (404, b"")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil.example:{port}"]
)
def test_a_name_that_was_made_to_point_at_this_machine_is_refused(board, host):
    answer = request(board, f"/{board.token}/data", Host=host.format(port=board.server_port))
    assert (answer.status, answer.read()) == (403, b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_nothing_can_be_written(board, method):
    assert request(board, f"/{board.token}/data", method).status == 501


def test_while_its_runs_cannot_be_read_the_page_is_told(board):
    def removed() -> bytes:
        raise UserError("no such run")

    board.snapshot = Snapshot(lambda: b"1", iter([0.0, MIN_AGE_S, MIN_AGE_S]).__next__)
    board.snapshot._read = removed
    answer = request(board, f"/{board.token}/data")
    assert (answer.status, answer.read()) == (503, b"")


def test_a_page_that_was_closed_prints_nothing(board, capsys):
    for error, printed in ((BrokenPipeError(), False), (KeyError(), True)):
        try:
            raise error
        except (BrokenPipeError, KeyError):
            board.handle_error(None, ("127.0.0.1", 1))
        assert bool(capsys.readouterr().err) is printed


def test_files_are_read_again_when_they_are_old():
    contents, now = iter([b"1", b"2", b"3"]), [0.0]
    snapshot = Snapshot(lambda: next(contents), lambda: now[0])
    assert snapshot.content() == b"1"
    now[0] = MIN_AGE_S
    assert snapshot.content() == snapshot.content() == b"2"


def test_before_the_first_run_there_is_a_page_too(tmp_path):
    server = open_board([], str(tmp_path), port=0)
    assert json.loads(gzip.decompress(server.snapshot.content()))["title"] == "no runs yet"
    server.server_close()


def test_a_port_in_use_and_a_run_that_is_none_are_errors_of_the_user(board, tmp_path):
    with pytest.raises(UserError, match=rf"port {board.server_port} cannot be used .*--port"):
        open_board([], str(tmp_path), board.server_port)
    with pytest.raises(UserError, match="no run 'absent'"):
        open_board(["absent"], str(tmp_path), 0)
