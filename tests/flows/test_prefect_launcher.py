"""Prefect's transactions on SQLite wait for each other, where they would fail as Prefect begins them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.seconds

REPOSITORY = Path(__file__).resolve().parents[2]

# Two transactions read, then both write: what the server does for every poll of a worker.
TWO_WRITERS = """
import asyncio, sys
import sqlalchemy as sa
from prefect.server.database.configurations import AioSqliteConfiguration
if sys.argv[2] == "as_writers":
    from flows.services.prefect_launcher import begin_as_writers
    begin_as_writers()

async def main():
    database = AioSqliteConfiguration(f"sqlite+aiosqlite:///{sys.argv[1]}")
    engine = await database.engine()
    session = await database.session(engine)
    async with session, database.begin_transaction(session):
        await session.execute(sa.text("CREATE TABLE polled (n INTEGER)"))
        await session.execute(sa.text("INSERT INTO polled VALUES (0)"))
    async def poll():
        session = await database.session(engine)
        async with session, database.begin_transaction(session):
            n = (await session.execute(sa.text("SELECT n FROM polled"))).scalar_one()
            await asyncio.sleep(0.2)
            await session.execute(sa.text(f"UPDATE polled SET n = {n + 1}"))
    done = await asyncio.gather(poll(), poll(), poll(), return_exceptions=True)
    session = await database.session(engine)
    async with session:
        n = (await session.execute(sa.text("SELECT n FROM polled"))).scalar_one()
    print(n, sum("database is locked" in str(error) for error in done))

asyncio.run(main())
"""


@pytest.mark.parametrize(("how", "said"), [("as_writers", "3 0"), ("as_prefect_does", "1 2")])
def test_transactions_that_read_and_write_wait_for_each_other(tmp_path: Path, how: str, said: str) -> None:
    command = [sys.executable, "-c", TWO_WRITERS, str(tmp_path / "prefect.db"), how]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout.strip() == said, done.stderr
