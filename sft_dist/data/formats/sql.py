"""Tables and queries of a database, addressed as SQLAlchemy does: `sqlite:///reviews.db#TABLE` or `...#SELECT ...`.

Nothing is written: a query is one SELECT, SQLite files are opened read-only and asked for nothing else, sessions of PostgreSQL and
MySQL are read-only, and no transaction is committed.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from datasets import Dataset

from sft_dist.data.formats.cache import tables_folder
from sft_dist.data.formats.faults import no_rows, unreadable
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.masking import masked
from sft_dist.recipe.references import sqlite_file
from sft_dist.recipe.suggest import similar_to

if TYPE_CHECKING:
    from sqlalchemy import URL

MAX_ROWS = 200_000_000
MAX_WAIT_S = 300.0  # for the next row of SQLite, and for each statement of a server
MAX_CONNECT_S = 30  # for a server to accept the connection
MAX_RECURSION_S = 60.0  # of a query WITH RECURSIVE, which need not end
MAX_VALUE_BYTES = 256 * 2**20  # of one value, which functions such as `zeroblob` and `group_concat` make
_STEPS = 100_000  # of SQLite's virtual machine, between two looks at the clock
_READS = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
_PRAGMAS = ("read_uncommitted", "table_list", "table_info", "table_xinfo")  # that SQLAlchemy reads
_READ_ONLY = {
    "postgresql": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "mysql": "SET SESSION TRANSACTION READ ONLY",
    "mariadb": "SET SESSION TRANSACTION READ ONLY",
}
_CONNECT_OPTIONS = {  # driver -> its name for the seconds to wait for a connection
    "psycopg2": "connect_timeout", "psycopg": "connect_timeout", "pg8000": "timeout", "mysqldb": "connect_timeout",
    "pymysql": "connect_timeout", "mysqlconnector": "connection_timeout", "mariadbconnector": "connect_timeout",
}  # fmt: skip
_ENDED = re.compile(r"interrupted|statement timeout|(?i:maximum statement execution time|max_statement_time) exceeded")
_QUOTED = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]|(\$\w*\$).*?\1|--[^\n]*|/\*(?!!).*?\*/""", re.DOTALL
)
_WRITES = re.compile(r"\b(?:insert|update|delete|merge|into)\b(?!\s*\()|/\*!", re.IGNORECASE)


def read_sql(text: str) -> Dataset:
    """All rows, in the order of the database; a query decides it with ORDER BY. `$NAME` in the password is taken from the
    environment, so that it need not stand in a recipe. Raises UserError.

    Read anew every time: nothing tells whether a database has changed. The copy is deleted when the process ends.
    """
    try:
        from sqlalchemy import create_engine
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        raise unreadable("SQL needs SQLAlchemy", hint="pip install sqlalchemy") from None
    address, _, table_or_query = (piece.strip() for piece in text.partition("#"))
    url, redacted = _url(address), masked(text)
    if re.search(r"\s", table_or_query):
        _require_one_select(table_or_query, redacted)
    try:
        engine = create_engine(url)
        try:
            with _guarded():
                is_query = re.search(r"\s", table_or_query)
                query = table_or_query if is_query else _whole_table(engine, table_or_query, redacted)
        finally:
            engine.dispose()
        Path(tables_folder()).mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix="sql-", dir=tables_folder())
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        with _guarded():
            return Dataset.from_sql(query, url.render_as_string(hide_password=False), cache_dir=folder)
    except UserError:
        raise
    except ImportError as error:
        raise unreadable(f"the driver of this database is not installed ({error})", redacted) from None
    except Exception as error:
        if "corresponds to no data" in str(error):
            raise no_rows([redacted]) from None
        cause = error if isinstance(error, SQLAlchemyError) else error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from None
        if _ENDED.search(str(cause)):
            limits = f"{MAX_WAIT_S:g} s without a row, or {MAX_RECURSION_S:g} s WITH RECURSIVE"
            raise unreadable(
                f"the query was interrupted after {limits}", redacted, hint="bound it with LIMIT"
            ) from None
        raise unreadable(_short(cause), redacted) from None


def _url(address: str) -> URL:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        hint = "such as sqlite:///reviews.db#TABLE or postgresql://user:$PASSWORD@host/database#TABLE"
        raise UserError(Problem("not a database's URL", "data.source", value=masked(address), hint=hint)) from None
    if file := sqlite_file(address):
        return url.set(database=f"file:{quote(os.path.abspath(file))}", query={"mode": "ro", "uri": "true"})
    return url.set(password=os.path.expandvars(str(url.password))) if url.password else url


def _require_one_select(query: str, redacted: str) -> None:
    """Raises UserError for several statements, and for one that writes."""
    words = _QUOTED.sub(" '' ", query).strip().rstrip(";")
    if ";" in words or _WRITES.search(words) or not re.match(r"\(*\s*(?:select|with|values)\b", words, re.IGNORECASE):
        hint = "give a table's name, or one SELECT without INTO"
        raise UserError(Problem("a query is one SELECT, and writes nothing", "data.source", value=redacted, hint=hint))


@contextmanager
def _guarded() -> Iterator[None]:
    """Connections that are opened meanwhile can only read, and neither they nor their statements are waited for without end."""
    from sqlalchemy import Engine, event

    event.listen(Engine, "do_connect", _limit_connect)
    event.listen(Engine, "engine_connect", _guard)
    try:
        yield
    finally:
        event.remove(Engine, "engine_connect", _guard)
        event.remove(Engine, "do_connect", _limit_connect)


def _limit_connect(dialect: Any, record: Any, arguments: Any, options: dict[str, Any]) -> None:
    if name := _CONNECT_OPTIONS.get(dialect.driver):
        options.setdefault(name, MAX_CONNECT_S)


def _time_limit(name: str) -> str:
    """Returns the statement that limits each later one of a session. MySQL ends SELECT alone, which is all that is read."""
    return {
        "postgresql": f"SET statement_timeout = {1000 * MAX_WAIT_S:.0f}",
        "mysql": f"SET SESSION max_execution_time = {1000 * MAX_WAIT_S:.0f}",
        "mariadb": f"SET SESSION max_statement_time = {MAX_WAIT_S:g}",
    }[name]


def _guard(connection: Any) -> None:
    dialect, driver = connection.dialect, connection.connection.dbapi_connection
    name = "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name
    if name == "sqlite":
        _guard_sqlite(driver)
    elif name in _READ_ONLY:
        cursor = driver.cursor()
        cursor.execute(_READ_ONLY[name])
        cursor.execute(_time_limit(name))
        cursor.close()
        driver.commit()  # the next transaction is read-only; nothing was written in this one


def _guard_sqlite(connection: sqlite3.Connection) -> None:
    num_rows, start_s, last_row_s, is_recursive = 0, time.monotonic(), time.monotonic(), False

    def allow(action: int, name: str | None, value: str | None, *place: str | None) -> int:
        nonlocal is_recursive
        is_recursive = is_recursive or action == sqlite3.SQLITE_RECURSIVE
        is_read = action in _READS or (action == sqlite3.SQLITE_PRAGMA and name in _PRAGMAS)
        return sqlite3.SQLITE_OK if is_read else sqlite3.SQLITE_DENY

    def count(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal num_rows, last_row_s
        num_rows, last_row_s = num_rows + 1, time.monotonic()
        if num_rows > MAX_ROWS:
            message = f"the query has more than {MAX_ROWS:,} rows"
            raise UserError(Problem(message, "data.source", hint="read fewer with LIMIT"))
        return row

    def is_late() -> int:
        now_s = time.monotonic()
        return int(now_s - last_row_s > MAX_WAIT_S or (is_recursive and now_s - start_s > MAX_RECURSION_S))

    connection.set_authorizer(allow)
    if sys.version_info >= (3, 11):
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    connection.row_factory = count
    connection.set_progress_handler(is_late, _STEPS)


def _whole_table(engine: object, name: str, redacted: str) -> str:
    from sqlalchemy import inspect

    looked = inspect(engine)
    schema, _, table = name.rpartition(".")
    tables = sorted([*looked.get_table_names(schema or None), *looked.get_view_names(schema or None)])
    if table not in tables:
        message = "there is no such table" if name else "which table? Its name, or a query, follows a `#`"
        raise UserError(
            Problem(
                message,
                "data.source",
                value=redacted,
                valid=tuple(tables[:20]),
                hint=similar_to(table, tables) if table else "",
            )
        )
    quote = looked.dialect.identifier_preparer.quote
    return "SELECT * FROM " + ".".join(quote(name_part) for name_part in (schema, table) if name_part)


def _short(error: BaseException) -> str:
    """SQLAlchemy repeats the query and links to its pages."""
    return str(error).split("\n[SQL:")[0].split("\n(Background")[0]
