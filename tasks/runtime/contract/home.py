"""Where alignflow keeps its state: one folder, `ALIGNFLOW_HOME` or `./.alignflow`.

store/    finished artifacts                    work/     one folder a key: attempts, checkpoints to resume from
runs/     one folder a flow run                 mlflow/   database and artifacts of the local tracker
prefect/  home of the local Prefect server      pids/     processes that `alignflow up` started
models/   packaged models, converted once       presets/  presets of your own
cache/    copies of artifacts that are kept elsewhere (`ALIGNFLOW_STORE`)
code/     snapshots of the code that stages ran
parsed_code.json  what was parsed of it
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from data_processing.errors import ConfigError
from tasks.runtime.contract.folders import make_folder

# Marks of an address: a home becomes part of the addresses of databases.
_UNSAFE = re.compile(r"%[0-9A-Fa-f]{2}|[?#]")


@dataclass(frozen=True)
class Home:
    """The folder that holds everything alignflow remembers; its parts are created when they are first needed.

    One that is not `writable` can be looked at: nothing is created in it.
    """

    root: Path
    writable: bool = True

    @classmethod
    def open(cls, root: Path | None = None, *, to_read: bool = False) -> Home:
        """The home at `root`, else at `ALIGNFLOW_HOME`, else `./.alignflow`; created if missing, always absolute.

        Raises `ConfigError` where it cannot be a folder that is written to; `to_read`, a folder that is there will do.
        """
        chosen = root or Path(os.environ.get("ALIGNFLOW_HOME") or ".alignflow")
        chosen = chosen.expanduser().resolve()
        if found := _UNSAFE.search(str(chosen)):
            raise ConfigError(
                f"ALIGNFLOW_HOME: {chosen} holds '{found[0]}', which the addresses of databases read as something else; name a folder "
                "without it"
            )
        try:
            chosen.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ConfigError(f"ALIGNFLOW_HOME: {error.filename or chosen} is a file; name a folder") from error
        except OSError as error:
            raise ConfigError(
                f"ALIGNFLOW_HOME: {chosen} cannot be made: {error.strerror}; name a folder you may write to"
            ) from error
        writable = os.access(chosen, os.W_OK | os.X_OK)
        if not writable and not to_read:
            raise ConfigError(f"ALIGNFLOW_HOME: {chosen} cannot be written to; name a folder you may write to")
        return cls(chosen, writable)

    @property
    def store(self) -> Path:
        """Finished artifacts, `store/<kind>/<key>/`."""
        return self._part("store")

    @property
    def cache(self) -> Path:
        """Copies of artifacts that are kept elsewhere."""
        return self._part("cache")

    @property
    def work(self) -> Path:
        """Attempts and resume folders, `work/<stage>-<key>/`."""
        return self._part("work")

    @property
    def runs(self) -> Path:
        """One folder a flow run: resolved config, what each node produced, the tracker's journal."""
        return self._part("runs")

    @property
    def mlflow(self) -> Path:
        """Database and artifacts of the local tracker."""
        return self._part("mlflow")

    @property
    def prefect(self) -> Path:
        """`PREFECT_HOME` of the local Prefect server."""
        return self._part("prefect")

    @property
    def pids(self) -> Path:
        """Records of the processes that `alignflow up` started."""
        return self._part("pids")

    @property
    def models(self) -> Path:
        """Packaged models, fetched and converted once."""
        return self._part("models")

    @property
    def code(self) -> Path:
        """Snapshots of the code that stages ran, by hash."""
        return self._part("code")

    @property
    def parsed_code(self) -> Path:
        """What was parsed of source files, for the next command."""
        return self.root / "parsed_code.json"

    @property
    def presets(self) -> Path:
        """The user's own presets, one YAML file each."""
        return self._part("presets")

    def run(self, run: str) -> Path:
        """The folder of flow run `run`."""
        return self._part("runs", run)

    @property
    def tracking_uri(self) -> str:
        """`MLFLOW_TRACKING_URI` where it is set, else the local database."""
        return os.environ.get("MLFLOW_TRACKING_URI") or self.own_tracking_uri

    @property
    def own_tracking_uri(self) -> str:
        """The local tracker's database."""
        return f"sqlite:///{self.mlflow / 'mlflow.db'}"

    def _part(self, *names: str) -> Path:
        if self.writable:
            try:
                return make_folder(self.root, *names)
            except FileExistsError as error:
                place = Path(error.filename)
                what = f"a link to {place.readlink()}, which is not there" if place.is_symlink() else "a file"
                raise ConfigError(f"ALIGNFLOW_HOME: {place} is {what}; mount its disk, or remove it") from error
        return self.root.joinpath(*names)
