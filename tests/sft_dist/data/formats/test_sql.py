"""Servers are read for a bounded time, by sessions that cannot write. SQLite: tests/integration/test_security.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine, event

from sft_dist.data.formats import sql


class Driver:
    """A connection that notes what it is told."""

    def __init__(self) -> None:
        self.statements: list[str] = []

    def cursor(self) -> Any:
        return SimpleNamespace(execute=self.statements.append, close=lambda: None)

    def commit(self) -> None:
        self.statements.append("COMMIT")


@pytest.mark.parametrize(
    ("name", "is_mariadb", "limit"),
    [
        ("postgresql", False, "SET statement_timeout = 300000"),
        ("mysql", False, "SET SESSION max_execution_time = 300000"),
        ("mysql", True, "SET SESSION max_statement_time = 300"),
    ],
)
def test_a_session_is_read_only_and_its_statements_end(name: str, is_mariadb: bool, limit: str) -> None:
    driver = Driver()
    dialect = SimpleNamespace(name=name, is_mariadb=is_mariadb)
    sql._guard(SimpleNamespace(dialect=dialect, connection=SimpleNamespace(dbapi_connection=driver)))
    read_only, *others = driver.statements
    assert read_only.endswith("READ ONLY")
    assert others == [limit, "COMMIT"]


@pytest.mark.parametrize(("driver", "name"), [("psycopg", "connect_timeout"), ("mysqlconnector", "connection_timeout")])
def test_a_server_that_does_not_answer_is_not_waited_for_without_end(driver: str, name: str) -> None:
    given: dict[str, Any] = {name: 5}
    options: dict[str, Any] = {}
    for chosen in (given, options):
        sql._limit_connect(SimpleNamespace(driver=driver), None, (), chosen)
    assert (given[name], options[name]) == (5, sql.MAX_CONNECT_S)
    with sql._guarded():
        assert event.contains(Engine, "do_connect", sql._limit_connect)
    assert not event.contains(Engine, "do_connect", sql._limit_connect)
