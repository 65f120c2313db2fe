"""Which libraries the interpreter of a cluster has: keys name the versions that stages run with, not those of whoever asks."""

from __future__ import annotations

import hashlib
import json
import time

from tasks.runtime.contract.failures import StageFailedError
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.spec import write_json
from tasks.runtime.execution.ray_jobs import RayJobsExecutor

_LIMIT_S = 120.0
_POLL_S = 0.2
_MARK = "libraries: "
_QUESTION = (
    "import importlib.metadata as m, json, platform; "
    f"print({_MARK!r} + json.dumps({{'python': '.'.join(platform.python_version_tuple()[:2]), "
    "**{d.metadata['Name']: d.version for d in reversed(list(m.distributions()))}}), flush=True)"
)


def libraries_of(cluster: RayJobsExecutor, home: Home) -> dict[str, str]:
    """Versions by distribution, and Python's own; asked once for as long as the cluster is up, by a job of a second.

    Raises `ExecutorUnreachableError`, or `StageFailedError` with what the job printed.
    """
    name = hashlib.sha256(f"{cluster.session()} {cluster.python}".encode()).hexdigest()[:16]
    place = home.root / "clusters" / f"{name}.json"
    if place.is_file():
        known: dict[str, str] = json.loads(place.read_text(encoding="utf-8"))
        return known
    said = _ask(cluster)
    write_json(place, said)
    return said


def _ask(cluster: RayJobsExecutor) -> dict[str, str]:
    job = cluster.run_python(_QUESTION)
    deadline = time.monotonic() + _LIMIT_S
    while not cluster.has_ended(job):
        if time.monotonic() > deadline:
            raise StageFailedError(
                f"the cluster did not say within {_LIMIT_S:g} s which libraries {cluster.python} has; look at job {job}"
            )
        time.sleep(_POLL_S)
    log = cluster.job_log(job)
    for line in log.splitlines():
        if line.startswith(_MARK):
            said: dict[str, str] = json.loads(line.removeprefix(_MARK))
            return said
    raise StageFailedError(
        f"'{cluster.python}' (runtime.python) does not run on the cluster: {log[-1000:] or 'it printed nothing'}"
    )
