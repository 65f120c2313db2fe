"""The process that runs one attempt of one stage: `python -m tasks.runtime.worker spec.json`.

Exit codes: 0 done, 10 bad config, 11 bad data, 12 diverged, 13 out of memory, 14 preempted with a checkpoint saved, 15
superseded; anything else is infrastructure. SIGTERM is the recipe's business: one that can save installs a handler and
ends with `PreemptedError`; the others die of it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_processing.errors import ConfigError, DataError
from data_processing.settings import Settings
from rlhf_core.events import EventLog
from tasks.runtime.contract.context import Stage, StageContext
from tasks.runtime.contract.failures import failure_of
from tasks.runtime.contract.liveness import announce, beating
from tasks.runtime.contract.registry import load_stage
from tasks.runtime.contract.spec import ERROR_FILE, EVENTS_FILE, LOG_FILE, RESULT_FILE, Result, Spec, attempt_folder, write_record
from tasks.runtime.execution.attempts import WorkFolder
from tasks.runtime.execution.event_tail import EventTail
from tasks.runtime.store.base import ArtifactStore
from tasks.runtime.store.manifest import Manifest
from tasks.runtime.store.places import open_store
from tasks.runtime.worker.watch import StageWatch

_EXIT_LIMIT_S = 60.0


def main(arguments: list[str]) -> int:
    """Run the spec named by the only argument; returns the exit code."""
    spec = Spec.model_validate_json(Path(arguments[0]).read_text(encoding="utf-8"))
    announce(spec.folder)
    _print_to(spec.folder / LOG_FILE)
    try:
        run(spec)
    except BaseException as error:  # whatever ends the stage must be reported: also SystemExit and KeyboardInterrupt
        traceback.print_exc()
        failure = failure_of(error)
        print(f"{spec.producer.node} failed with exit code {failure.exit_code}: {failure.message}", file=sys.stderr, flush=True)
        write_record(spec.folder / ERROR_FILE, failure)
        return failure.exit_code
    return 0


def _print_to(log: Path) -> None:
    """Send what this process and its children print to the attempt's log, which outlives the cluster."""
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    if not os.path.sameopenfile(target, sys.stdout.fileno()):
        print(f"from here on the log is {log}", flush=True)
        os.dup2(target, sys.stdout.fileno())
        os.dup2(target, sys.stderr.fileno())
    os.close(target)


def run(spec: Spec) -> Result:
    """Run the stage, publish its artifact, write `result.json`."""
    started = time.monotonic()
    _check_secrets(spec)
    stage: Stage[Any] = load_stage(spec.stage)
    store = open_store(spec.store, spec.store_address)
    spec.output.mkdir(parents=True, exist_ok=True)  # on another machine than the flow's it may not be there
    with beating(spec.folder):  # they may be fetched from far away
        inputs = {name: _input_folder(store, name, spec) for name in spec.inputs}
    context = StageContext(
        config=_parse_config(stage, spec.config),
        inputs=inputs,
        refs=spec.inputs,
        output=spec.output,
        resume=spec.resume,
        seed=spec.seed,
        attempt=spec.attempt,
        events=EventLog(spec.folder / EVENTS_FILE),
        placement_timeout_s=spec.placement_timeout_s,
        allowed_hosts=spec.allowed_hosts,
    )
    with StageWatch(spec) as watch:
        stage.run(context)
        seconds = time.monotonic() - started
        watch.publishing()
        return _publish(spec, store, seconds)


def _check_secrets(spec: Spec) -> None:
    if missing := [name for name in spec.secrets if not os.environ.get(name)]:
        raise ConfigError(
            f"runtime.secrets: {', '.join(missing)} not set on {socket.gethostname()}, where stage '{spec.producer.node}' runs; set it for "
            "the processes of that machine (for Ray: in the environment of its raylet), or take the name out"
        )


def _parse_config(stage: Stage[Any], values: dict[str, Any]) -> Settings:
    try:
        config: Settings = stage.config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"stage '{stage.name}': {error}") from error
    return config


def _input_folder(store: ArtifactStore, name: str, spec: Spec) -> Path:
    ref = spec.inputs[name]
    folder = store.fetch(ref.kind, ref.key)
    if folder is None:
        raise DataError(
            f"input '{name}' ({ref.kind} {ref.key[:12]}, made by {ref.producer}) is missing or was corrupt and has been set "
            "aside; run the pipeline again to make it anew"
        )
    return folder


def _publish(spec: Spec, store: ArtifactStore, seconds: float) -> Result:
    if not any(spec.output.iterdir()):
        raise RuntimeError(f"stage '{spec.stage}' returned but wrote nothing to its output")
    events = events_since(spec.work, spec.first_attempt, spec.attempt)
    summary = {k: v for e in events if e["type"] == "summary" for k, v in e["values"].items()}
    lines = (json.dumps(e) + "\n" for e in events)
    (spec.output / EVENTS_FILE).write_text("".join(lines), encoding="utf-8")
    entries, content = store.describe_files(spec.kind, spec.key, spec.output)
    manifest = Manifest(
        kind=spec.kind,
        key=spec.key,
        sha256=content,
        files=entries,
        producer=spec.producer,
        inputs=spec.inputs,
        description=spec.description,
        seconds=seconds,
        summary=summary,
        finished_at=time.time(),
    )
    store.prepare(spec.output, manifest)  # may take minutes, in which others look at the key
    with WorkFolder(spec.work).owned_by(spec.token):
        ref = store.publish(spec.output, manifest, prepared=True)
        result = Result(ref=ref, attempt=spec.attempt, seconds=seconds, summary=summary)
        write_record(spec.folder / RESULT_FILE, result)
    shutil.rmtree(spec.resume, ignore_errors=True)
    return result


def events_since(work: Path, first_attempt: int, last_attempt: int) -> list[dict[str, Any]]:
    """What attempts first to last reported, in order; where a resumed one repeated a step, only the later report."""
    events = [e for n in range(first_attempt, last_attempt + 1) for e in EventTail(attempt_folder(work, n) / EVENTS_FILE).read()]
    latest: dict[tuple[int, str], int] = {}
    for index, event in enumerate(events):
        for name in event["values"] if event["type"] == "metrics" else ():
            latest[event["step"], name] = index
    kept = []
    for index, event in enumerate(events):
        if event["type"] == "metrics":
            values = {name: value for name, value in event["values"].items() if latest[event["step"], name] == index}
            if not values:
                continue
            event = {**event, "values": values}  # noqa: PLW2901
        kept.append(event)
    return kept


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # The result is on disk; a library thread that will not end must not keep the job's resources.
    faulthandler.dump_traceback_later(_EXIT_LIMIT_S, exit=True)
    sys.exit(code)
