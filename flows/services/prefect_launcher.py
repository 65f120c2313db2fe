"""`prefect`, with a server that takes SQLite's write lock when a transaction begins: `python -m flows.services.prefect_launcher server start`.

Prefect begins its transactions as readers. One that then writes after somebody else has written can only fail, whatever the
time-out: "database is locked", several times a minute where a worker polls. As writers they wait for each other. No setting of
Prefect's says so. On another database nothing is changed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any


def begin_as_writers() -> None:
    """Have every transaction on SQLite begin with the write lock, in this process."""
    from prefect.server.database.configurations import AioSqliteConfiguration

    begin = AioSqliteConfiguration.begin_transaction

    @asynccontextmanager
    async def begin_transaction(self: Any, session: Any, with_for_update: bool = False) -> AsyncGenerator[Any, None]:
        async with begin(self, session, with_for_update=True) as transaction:
            yield transaction

    AioSqliteConfiguration.begin_transaction = begin_transaction  # type: ignore[method-assign]


if __name__ == "__main__":
    from prefect.cli import app

    begin_as_writers()
    app()
