"""Tables and queries of a database, addressed as SQLAlchemy does: `sqlite:///reviews.db#TABLE` or `...#SELECT ...`."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset

from sft_dist.data.formats.cache import tables_folder
from sft_dist.data.formats.faults import no_rows, unreadable
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.suggest import similar_to

if TYPE_CHECKING:
    from sqlalchemy import URL


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
    url, redacted = _url(address), _hidden(text)
    try:
        engine = create_engine(url)
        try:
            query = (
                table_or_query if re.search(r"\s", table_or_query) else _whole_table(engine, table_or_query, redacted)
            )
        finally:
            engine.dispose()
        Path(tables_folder()).mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix="sql-", dir=tables_folder())
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return Dataset.from_sql(query, url.render_as_string(hide_password=False), cache_dir=folder)
    except UserError:
        raise
    except ImportError as error:
        raise unreadable(f"the driver of this database is not installed ({error})", redacted) from None
    except Exception as error:
        if "corresponds to no data" in str(error):
            raise no_rows([redacted]) from None
        cause = error if isinstance(error, SQLAlchemyError) else error.__cause__ or error
        raise unreadable(_short(cause), redacted) from None


def _url(address: str) -> URL:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        hint = "such as sqlite:///reviews.db#TABLE or postgresql://user:$PASSWORD@host/database#TABLE"
        raise UserError(Problem("not a database's URL", "data.source", value=_hidden(address), hint=hint)) from None
    return url.set(password=os.path.expandvars(str(url.password))) if url.password else url


def _hidden(text: str) -> str:
    """The address without its password."""
    return re.sub(r"(://[^/:@]*:)[^/@]*@", r"\1***@", text)


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
