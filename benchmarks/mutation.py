"""Whether the tests notice when the runtime is wrong: small changes of its source, each given to the tests of the changed file.

    python benchmarks/mutation.py
    python benchmarks/mutation.py --only tasks/runtime/store/cache.py:55 --only tasks/runtime/keys

Of each file a few changes are drawn, the same ones for the same seed; what changes there are says `mutants`. The tests run on a copy
of the project, so that the checkout stays as it is. A change is killed when a test fails, or when the tests take far longer than
without it. Results are kept after each change; `--only` tries those of some files or lines again and leaves the others' results as
they are. The report is written from all of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
from mutants import Mutant, mutants

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "mutations.json"
REPORT = ROOT / "benchmarks" / "notes" / "mutations.md"
COPIED = ("flows", "tasks", "rlhf_core", "data_processing", "evaluation", "deployments", "tests", "pyproject.toml")

_KEYS = ("runtime/test_runtime_keys.py",)
_STORE = ("runtime/test_runtime_store.py", "runtime/test_store_and_its_disk.py", "runtime/test_store_of_many.py")
_BUCKET = ("runtime/test_store_in_a_bucket.py",)
_JOBS = ("runtime/test_runtime_execution.py",)
_START = (*_JOBS, "runtime/test_runtime_start.py")
_ALIVE = ("runtime/test_worker_watch.py", "runtime/test_heartbeat.py")
# By area, the files and the tests of each, below `tests`: those that take least come first. What only slow tests reach, with a Ray
# or a Prefect of their own, is left out.
TESTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "keys": {
        "tasks/runtime/keys/closure.py": (*_KEYS, "runtime/test_snapshots.py"),
        "tasks/runtime/keys/file_hashes.py": _STORE[:2],
        "tasks/runtime/keys/snapshot.py": ("flows/test_old_code.py", "runtime/test_snapshots.py"),
        "tasks/runtime/keys/stage_key.py": _KEYS,
    },
    "store": {
        "tasks/runtime/store/adopt.py": (_STORE[0], "flows/test_own_stages.py"),
        "tasks/runtime/store/artifacts.py": _STORE,
        "tasks/runtime/store/cache.py": _BUCKET,
        "tasks/runtime/store/manifest.py": _STORE[:2],
        "tasks/runtime/store/places.py": _BUCKET,
        "tasks/runtime/store/records.py": _START[1:],
        "tasks/runtime/store/remote.py": _BUCKET,
        "tasks/runtime/store/tree.py": _STORE[:2],
    },
    "attempts": {
        "tasks/runtime/execution/attempts.py": (_STORE[0], *_START),
        "tasks/runtime/execution/followers.py": _START,
        "tasks/runtime/contract/liveness.py": (*_ALIVE, *_START),
    },
    "execution": {
        "tasks/runtime/execution/event_tail.py": _JOBS,
        "tasks/runtime/execution/executor.py": _START,
        "tasks/runtime/execution/follow.py": _START,
        "tasks/runtime/execution/start.py": _START[1:],
        "tasks/runtime/execution/subprocess_executor.py": _JOBS,
    },
    "graph": {
        "flows/graph/limits.py": ("flows/test_scheduler.py",),
        "flows/graph/plan.py": ("flows/test_graph.py", "flows/test_own_stages.py"),
        "flows/graph/selection.py": ("flows/test_graph.py",),
        "flows/graph/walk.py": ("flows/test_scheduler.py",),
    },
}
# Changes after which the code does the same, by file, line and change, with the reason.
EQUIVALENT: Mapping[tuple[str, str, str], str] = {
    ("tasks/runtime/store/adopt.py", "staging = store.staging(old.kind, key.key, 0)", "0 → 1"): (
        "a number that no attempt at this key has yet"
    ),
    ("tasks/runtime/store/cache.py", "return os.open(self._use(kind, key), os.O_RDWR | os.O_CREAT, 0o666)", "0o666 → 439"): (
        "whether the empty file may be executed matters to nobody"
    ),
    ("tasks/runtime/store/remote.py", "content = manifest.model_dump_json(indent=1).encode()", "1 → 2"): (
        "spaces between values of JSON"
    ),
    ("tasks/runtime/contract/liveness.py", "return False", "return False → return None"): (
        "who asks only asks whether it is true"
    ),
    ("tasks/runtime/execution/executor.py", "reserves: bool = False", "False → True"): ("the runtime says it of every job"),
    (
        "tasks/runtime/execution/subprocess_executor.py",
        "if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:",
        "process.is_running() and process.status() != psutil.STATUS_ZOMBIE → process.is_running() or process.status() != psutil.STATUS_ZOMBIE",
    ): "one that has ended has no status, which is suppressed, and what a zombie has left in its session goes anyway",
    ("tasks/runtime/execution/start.py", "self._accept_from: int | None = None if request.force else 0", "0 → 1"): (
        "attempts are counted from 1"
    ),
}


@dataclass(frozen=True)
class Result:
    """What became of a change."""

    file: str
    line: int
    text: str
    original: str
    mutated: str
    killed: bool

    @property
    def change(self) -> tuple[str, str, str]:
        """The file, its line as it is, since numbers of lines move, and what becomes of it."""
        return self.file, self.text, f"{self.original} → {self.mutated}"

    @property
    def outcome(self) -> str:
        """In words."""
        return "killed" if self.killed else "the same" if self.change in EQUIVALENT else "survived"

    @property
    def line_of_report(self) -> str:
        """Where it is and what it is, and the reason where it changes nothing."""
        reason = f": {EQUIVALENT[self.change]}" if self.outcome == "the same" else ""
        return f"- {self.file}:{self.line}: `{self.original}` → `{self.mutated}`{reason}"


def chosen(each: int, seed: int, only: Sequence[str]) -> Iterator[Mutant]:
    """At most `each` changes a file, drawn by `seed`; of these the ones in `only`: files, folders, or `file:line`."""
    for file in (file for files in TESTS.values() for file in files):
        found = mutants(file, (ROOT / file).read_bytes())
        drawn = sorted(random.Random(f"{seed} {file}").sample(range(len(found)), min(each, len(found))))
        for mutant in (found[place] for place in drawn):
            if not only or any(f"{file}:{mutant.line}" == place or file.startswith(place) for place in only):
                yield mutant


class Copy:
    """The project below `folder`, to be changed, and its tests, which work there too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._project = folder / "project"
        self._usual_s: dict[tuple[str, ...], float] = {}
        self._project.mkdir()
        for name in COPIED:
            source, target = ROOT / name, self._project / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(source, target)

    def kills(self, mutant: Mutant) -> bool:
        """Whether the tests of the changed file notice the change. Raises `RuntimeError` where they fail without it."""
        tests = next(tuple(files[mutant.file]) for files in TESTS.values() if mutant.file in files)
        if tests not in self._usual_s:
            began_s = time.monotonic()
            if not self._passes(tests, None):
                raise RuntimeError(f"{', '.join(tests)}: a test fails without any change")
            self._usual_s[tests] = time.monotonic() - began_s
        path = self._project / mutant.file
        source = path.read_bytes()
        self._write(path, mutant.applied(source))
        try:
            return not self._passes(tests, 4 * self._usual_s[tests] + 20)
        finally:
            self._write(path, source)

    def _write(self, path: Path, source: bytes) -> None:
        path.write_bytes(source)
        # Python tells its own copy from what was compiled before by size and second.
        Path(importlib.util.cache_from_source(path)).unlink(missing_ok=True)

    def _passes(self, tests: Sequence[str], limit_s: float | None) -> bool:
        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", f"--basetemp={self._folder / 'work'}"]
        command = [sys.executable, "-m", "pytest", *options, *(f"tests/{test}" for test in tests)]
        environment = {**os.environ, "PYTHONPATH": str(self._project), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, cwd=self._project, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )
        try:
            return process.wait(limit_s) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            self._end_what_is_left()
            process.wait()

    def _end_what_is_left(self) -> None:
        """Workers outlive who started them, which is what they are for."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if str(self._project) in process.environ().get("PYTHONPATH", ""):
                    process.kill()


def report(results: Sequence[Result]) -> Iterator[str]:
    """The lines of the report."""
    yield "# Changes of the runtime that its tests notice"
    yield ""
    yield "Written by `benchmarks/mutation.py`, which says what is changed and how it is tried. What only slow tests reach, with a Ray or"
    yield "a Prefect of their own, is not changed. Changes after which the code does the same count neither way."
    yield ""
    yield "| module | changes tried | killed | survived | share killed | the same |"
    yield "|---|---|---|---|---|---|"
    for area, files in TESTS.items():
        yield _row(f"**{area}**", [result for result in results if result.file in files])
        yield from (_row(f"`{file}`", [result for result in results if result.file == file]) for file in files)
    for title, outcome in (("Survived", "survived"), ("The same", "the same")):
        listed = [result for result in results if result.outcome == outcome]
        yield from ("", f"## {title}", "", *(result.line_of_report for result in listed), *([] if listed else ["None."]))


def _row(name: str, results: Sequence[Result]) -> str:
    outcomes = [result.outcome for result in results]
    killed, survived, same = (outcomes.count(outcome) for outcome in ("killed", "survived", "the same"))
    share = f"{100 * killed / (killed + survived):.0f} %" if killed + survived else ""
    return f"| {name} | {killed + survived} | {killed} | {survived} | {share} | {same} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Change the runtime here and there, and see whether its tests notice")
    parser.add_argument("--each", type=int, default=12, help="changes a file; 0: only write the report anew")
    parser.add_argument("--seed", type=int, default=0, help="which changes are drawn")
    parser.add_argument("--only", action="append", default=[], metavar="PLACE", help="a file, a folder or file:line, again")
    arguments = parser.parse_args()
    keep = RESULT.is_file() and (arguments.only or not arguments.each)
    kept = json.loads(RESULT.read_text(encoding="utf-8")) if keep else []
    results = {_place(result): result for result in (Result(**values) for values in kept)}
    with tempfile.TemporaryDirectory(prefix="mutation") as folder:
        copy = Copy(Path(folder))
        for mutant in chosen(arguments.each, arguments.seed, arguments.only):
            result = Result(mutant.file, mutant.line, mutant.text, mutant.original, mutant.mutated, killed=False)
            if result.change not in EQUIVALENT:
                result = replace(result, killed=copy.kills(mutant))
            results[_place(result)] = result
            print(f"{result.outcome} {result.line_of_report}", flush=True)
            content = json.dumps([asdict(result) for result in results.values()], indent=1, ensure_ascii=False)
            RESULT.write_text(content + "\n", encoding="utf-8")
    REPORT.write_text("\n".join(report(list(results.values()))) + "\n", encoding="utf-8")


def _place(result: Result) -> tuple[int, tuple[str, str, str]]:
    return result.line, result.change


if __name__ == "__main__":
    main()
