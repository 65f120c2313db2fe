"""The tests that a response's program passes, as a reward. `rlhf_core.sandbox` runs it."""

from __future__ import annotations

import json
import math
import os
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_core.rewards.base import ScoredResponse, Scores
from rlhf_core.rewards.code_tests import Asserts, Case, is_same_output, program_of, read_tests
from rlhf_core.rewards.errors import TransientRewardError
from rlhf_core.sandbox.check import check_confinement
from rlhf_core.sandbox.limits import Ending, Limits, Within
from rlhf_core.sandbox.processes import run_script, run_tests
from rlhf_core.settings.rewards.code import CodeReward

if TYPE_CHECKING:
    from rlhf_core.rewards.build import Around

# Metrics by how a run ended; a response's is 1 where one of its runs ended so.
_ENDINGS = {
    "timed_out": Ending.TIME,
    "out_of_memory": Ending.MEMORY,
    "forbidden": Ending.FORBIDDEN,
    "wrote_too_much": Ending.TOO_MUCH,
}


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Share of the tests passed, and how the runs ended; none where there was no program. NaN and why where the tests are at fault."""

    share: float
    endings: frozenset[Ending] = frozenset()
    failure: str | None = None


class CodeScorer:
    """Share of the tests passed, or 1 and 0, by running each program against its row's tests, `workers` of them side by side.

    Refuses, when it is made, a machine that cannot confine programs.
    """

    name = "code"
    waits = True

    def __init__(self, source: CodeReward) -> None:
        self._source = source
        self._within = _within(source)
        missing = check_confinement(self._within)
        self.notes = tuple(
            f"reward 'code': confine=false, and programs are not kept from {what} on this machine" for what in missing
        )
        self._workers = ThreadPoolExecutor(source.workers or os.cpu_count(), "code")

    def score(self, responses: Sequence[ScoredResponse]) -> Scores:
        """NaN for a row whose tests cannot be read. Raises `TransientRewardError` where no process can be started."""
        try:
            outcomes = list(self._workers.map(self._outcome, responses))
        except OSError as error:
            raise TransientRewardError(
                f"reward 'code' could not run a program: {error}; see to processes, memory and disk"
            ) from error
        metrics = {"ran": [_told(outcome, bool(outcome and outcome.endings)) for outcome in outcomes]}
        metrics |= {name: [_told(o, bool(o and ending in o.endings)) for o in outcomes] for name, ending in _ENDINGS.items()}
        rewards = [None if outcome is None else self._worth(outcome.share) for outcome in outcomes]
        return Scores(rewards, metrics, failures=[outcome.failure if outcome else None for outcome in outcomes])

    def _worth(self, share: float) -> float:
        return float(share == 1.0) if self._source.all_of_them and not math.isnan(share) else share

    def _outcome(self, response: ScoredResponse) -> _Outcome | None:
        column, entry_point = self._source.tests, str(response.columns.get(self._source.entry_point) or "")
        tests = response.label if column == "label" else response.columns.get(column)
        if tests is None:
            return None
        text = tests if isinstance(tests, str) else json.dumps(tests)
        try:
            what = read_tests(text, entry_point, self._source.max_tests)
        except ValueError as error:
            return _Outcome(math.nan, failure=f"the tests in '{column}' of prompt {response.prompt_id} cannot be read: {error}")
        program = program_of(response.text, needs_fence=self._source.needs_fence)
        if program is None:
            return _Outcome(0.0)
        if isinstance(what, Asserts):
            ran = run_tests(program, what.source, self._within, entry_point)
            return _Outcome(what.share_passed(ran.output), frozenset({ran.ending}))
        return self._of_cases(program, what)

    def _of_cases(self, program: str, cases: Sequence[Case]) -> _Outcome:
        passed, endings = 0, set[Ending]()
        for case in cases:
            ran = run_script(program, case.input, self._within)
            endings.add(ran.ending)
            written = ran.output.decode(errors="replace")
            passes = ran.ending == Ending.DONE and is_same_output(written, case.output, self._source.tolerance)
            passed += passes
            if not passes and self._source.all_of_them:
                break
        return _Outcome(passed / len(cases), frozenset(endings))


def build(source: CodeReward, around: Around) -> CodeScorer:
    """From settings."""
    return CodeScorer(source)


def _told(outcome: _Outcome | None, value: bool) -> float | None:
    """A metric of a response, None where the source does not apply to it."""
    return None if outcome is None else float(value)


def _within(source: CodeReward) -> Within:
    limits = Limits(
        wall_s=source.time_s,
        cpu_s=math.ceil(source.time_s),
        memory_mib=source.memory_mib,
        disk_mib=source.disk_mib,
        output_kib=source.output_kib,
    )
    packages = tuple(sorted({sysconfig.get_path(name) for name in ("purelib", "platlib")})) if source.packages else ()
    return Within(limits, packages, source.confine)
