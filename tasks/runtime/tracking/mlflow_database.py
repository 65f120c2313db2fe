"""The local tracker's database, made whole or not at all.

MLflow makes one in dozens of steps. A process that is killed between two of them, as at the end of a short run, would leave a
database that no MLflow opens again; and racing first users break it. `python -m tasks.runtime.tracking.mlflow_database HOME`.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from filelock import FileLock

from tasks.runtime.contract.home import Home

_SQLITE = "sqlite:///"


def make_database(uri: str, mlflow_folder: Path) -> None:
    """Make the database that `uri` names, where it names a file that is not there yet."""
    if not uri.startswith(_SQLITE) or (path := Path(uri.removeprefix(_SQLITE))).exists():
        return
    for chatty in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with FileLock(mlflow_folder / "init.lock"):
        if not path.exists():
            _make(path, mlflow_folder)


def _make(path: Path, mlflow_folder: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    store = SqlAlchemyStore(f"{_SQLITE}{part}", (mlflow_folder / "artifacts").as_uri())
    store.engine.dispose()
    part.rename(path)


if __name__ == "__main__":
    home = Home.open(Path(sys.argv[1]))
    make_database(home.own_tracking_uri, home.mlflow)
