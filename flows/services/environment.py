"""The environment variables under which alignflow and its services run: everything local, quiet and in one folder.

What the user has set wins: `PREFECT_API_URL`, `MLFLOW_TRACKING_URI` and `RAY_ADDRESS` point at real servers instead.
Prefect reads its settings when it is imported, so `enter` comes before that.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path

from flows.services.processes import ProcessRecord, Records
from tasks.runtime.contract.home import Home

ROOT = Path(__file__).resolve().parents[2]
SERVICE_VARIABLES = {"prefect": "PREFECT_API_URL", "mlflow": "MLFLOW_TRACKING_URI", "ray": "RAY_ADDRESS"}
_NO_PROXY = ("NO_PROXY", "no_proxy")
_OWN_HOSTS = ("127.0.0.1", "localhost")
_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONUNBUFFERED": "1",
}


def enter(home: Home, environment: MutableMapping[str, str] | None = None) -> None:
    """Set what is not set yet: the local settings, and the addresses of services that `alignflow up` started.

    Where Ray is to be one of our own, how to log in is said before anybody imports Ray, which asks but once.
    """
    environment = os.environ if environment is None else environment
    for name, value in local_settings(home).items():
        environment.setdefault(name, value)
    environment.update(without_proxy(environment))
    running = {record.name: record for record in Records(home.pids).all() if record.process}
    for name, variable in SERVICE_VARIABLES.items():
        if name in running and variable not in environment:
            environment[variable] = running[name].url
    own_ray = running["ray"].url if "ray" in running else None
    if home.writable and environment.get("RAY_ADDRESS") == own_ray:
        environment.update(ray_authentication(home))


@contextmanager
def changed_environment() -> Iterator[None]:
    """Undo, at the end of the block, what was done to this process's environment in it."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def quiet_prefect(environment: MutableMapping[str, str] | None = None) -> None:
    """Keep Prefect's own lines off the terminal of a run that prints its own; they still reach the server.

    Nor is a server that went away waited for as long as Prefect would: the run goes on without it.
    """
    environment = os.environ if environment is None else environment
    environment.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    environment.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
    environment.setdefault("PREFECT_CLIENT_MAX_RETRIES", "3")  # a quarter of a minute a call, where 5 is a whole one


def local_settings(home: Home) -> dict[str, str]:
    """Variables that keep the state of all libraries below the home, and their usage reports at home."""
    prefect = home.prefect
    return {
        **_QUIET,
        "ALIGNFLOW_HOME": str(home.root),
        "PREFECT_HOME": str(prefect),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(prefect / "results"),
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "alignflow",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "OMP_NUM_THREADS": "1",
    }


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that keep this machine's own servers from being asked through a proxy, beside what they say already."""
    given = [place.strip() for name in _NO_PROXY for place in environment.get(name, "").split(",")]
    places = ",".join(dict.fromkeys([*filter(None, given), *_OWN_HOSTS]))
    return dict.fromkeys(_NO_PROXY, places)


def use_own_ray(home: Home, head: ProcessRecord, environment: MutableMapping[str, str]) -> None:
    """Point `environment` at a Ray head that alignflow started, with the token that it asks for."""
    environment["RAY_ADDRESS"] = head.url
    environment.update(ray_authentication(home))


def ray_authentication(home: Home) -> dict[str, str]:
    """Token authentication for our own Ray heads: some of their sockets listen on every interface."""
    path = home.root / "ray_token"
    if not path.exists():
        part = path.with_name(f".ray_token.{os.getpid()}")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32))
        _keep_first(part, path)
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


def _keep_first(part: Path, path: Path) -> None:
    """Name `part` `path` unless somebody was faster: a token that is in use must not change."""
    try:
        os.link(part, path)
    except FileExistsError:
        pass
    finally:
        part.unlink()


def service_environment(home: Home) -> dict[str, str]:
    """What a service process gets: this environment, the local settings, our packages and this interpreter's tools."""
    environment = dict(os.environ)
    for variable in SERVICE_VARIABLES.values():
        environment.pop(variable, None)
    environment |= local_settings(home) | without_proxy(environment)
    paths = [str(ROOT), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(p for p in paths if p))
    return environment
