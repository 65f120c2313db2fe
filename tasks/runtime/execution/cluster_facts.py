"""What is on a cluster's machines: keys name the libraries that stages run with, and the precision, not those of whoever asks."""

from __future__ import annotations

import hashlib
import inspect
import time

from pydantic import BaseModel, ConfigDict

from rlhf_core import precision
from rlhf_core.precision import Dtype
from tasks.runtime.contract.failures import StageFailedError
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.spec import write_record
from tasks.runtime.execution.ray_jobs import RayJobsExecutor

_LIMIT_S = 120.0
_POLL_S = 0.2
_MARK = "facts: "
# Alignflow need not be there: the job brings what it asks with.
_QUESTION = f"""{inspect.getsource(precision)}
import importlib.metadata as m, json, platform
libraries = {{d.metadata["Name"]: d.version for d in reversed(list(m.distributions()))}}
libraries = {{"python": ".".join(platform.python_version_tuple()[:2]), **libraries}}
print({_MARK!r} + json.dumps({{"libraries": libraries, "on_cpu": native_dtype(False), "on_gpu": native_dtype(True)}}), flush=True)
"""


class ClusterFacts(BaseModel):
    """Versions by distribution, and Python's own; which precision the processors compute natively."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    libraries: dict[str, str]
    on_cpu: Dtype
    on_gpu: Dtype

    def native_dtype(self, on_gpu: bool) -> Dtype:
        """As `rlhf_core.precision.native_dtype`, of the machine that was asked."""
        return self.on_gpu if on_gpu else self.on_cpu


def facts_of(cluster: RayJobsExecutor, home: Home) -> ClusterFacts:
    """What one of its machines says; asked once for as long as the cluster is up, by a job of a second.

    Raises `ExecutorUnreachableError`, or `StageFailedError` with what the job printed.
    """
    name = hashlib.sha256(f"{cluster.session()} {cluster.python} {_QUESTION}".encode()).hexdigest()[:16]
    place = home.root / "clusters" / f"{name}.json"
    if place.is_file():
        return ClusterFacts.model_validate_json(place.read_text(encoding="utf-8"))
    said = _ask(cluster)
    if home.writable:
        write_record(place, said)
    return said


def _ask(cluster: RayJobsExecutor) -> ClusterFacts:
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
            return ClusterFacts.model_validate_json(line.removeprefix(_MARK))
    raise StageFailedError(
        f"'{cluster.python}' (runtime.python) does not run on the cluster: {log[-1000:] or 'it printed nothing'}"
    )
