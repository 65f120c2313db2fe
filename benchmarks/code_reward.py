"""How many programs the reward `code` runs in a second, and what one costs: `python benchmarks/code_reward.py --workers 2`."""

from __future__ import annotations

import argparse
import json
import resource
import time

from rlhf_core.rewards.base import ScoredResponse, Scores
from rlhf_core.rewards.code import CodeScorer
from rlhf_core.settings.rewards.code import CodeReward

# Name, program, tests: as a script with one input, and as a function with three asserts.
WORKLOADS = (
    ("script, one input", "a, b = map(int, input().split())\nprint(a + b)", json.dumps([{"input": "1 2", "output": "3"}])),
    (
        "function, three asserts",
        "def add(a, b):\n    return a + b",
        "assert add(1, 2) == 3\nassert add(2, 2) == 4\nassert add(0, 5) == 5",
    ),
)


def cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--programs", type=int, default=200)
    asked = parser.parse_args()
    scorer = CodeScorer(CodeReward(workers=asked.workers))
    for name, program, tests in WORKLOADS:
        responses = [ScoredResponse(str(n), [], tests, [], [], f"```python\n{program}\n```") for n in range(asked.programs)]
        started, used = time.perf_counter(), cpu_s()
        scores = Scores.of(scorer.score(responses))
        wall_s, each_ms = time.perf_counter() - started, (cpu_s() - used) / asked.programs * 1000
        assert set(scores.rewards) == {1.0}
        print(
            f"{name}: {asked.programs / wall_s:.0f} programs/s, {each_ms:.0f} ms of processor time each ({asked.workers} workers)"
        )


if __name__ == "__main__":
    main()
