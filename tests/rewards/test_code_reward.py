"""What programs earn, by the tests that they pass; whatever else they do earns nothing."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from data_processing.errors import ConfigError
from rlhf_core.rewards import code
from rlhf_core.rewards.base import ScoredResponse, Scores
from rlhf_core.rewards.build import Around, build_scorer
from rlhf_core.rewards.code import CodeScorer
from rlhf_core.rewards.errors import TransientRewardError
from rlhf_core.sandbox import processes
from rlhf_core.settings.rewards.code import CodeReward
from tests.rewards.confined import needs_confinement

pytestmark = needs_confinement

SETTINGS: dict[str, Any] = {"time_s": 5.0, "memory_mib": 256, "workers": 2}
ADD = "def add(a, b):\n    return a + b\n"
ADD_TESTS = "assert add(1, 2) == 3\nassert add(2, 2) == 4\nassert add(0, 0) == 0\nassert add(5, 7) == 12"
SUMS = json.dumps([{"input": "1 2", "output": "3"}, {"input": "4 5", "output": "9"}])
ADDS = "a, b = map(int, input().split())\nprint(a + b)"


@pytest.fixture(scope="module")
def scorer() -> Iterator[CodeScorer]:
    yield CodeScorer(CodeReward(**SETTINGS))


def response(program: str, label: str | None = ADD_TESTS, **columns: Any) -> ScoredResponse:
    return ScoredResponse("p0", [], label, [1], [2], f"So:\n```python\n{program}\n```\n", columns)


def reward(scorer: CodeScorer, program: str, label: str = ADD_TESTS, **columns: Any) -> float | None:
    return scorer.score([response(program, label, **columns)]).rewards[0]


def told(scores: Scores) -> Mapping[str, float | None]:
    return {name: values[0] for name, values in scores.metrics.items() if values[0] != 0.0}


def test_a_program_earns_the_share_of_the_tests_that_it_passes(scorer: CodeScorer) -> None:
    scores = scorer.score([response(ADD), response("def add(a, b): return a * b"), response("def sub(a, b): return a - b")])
    assert scores.rewards == [1.0, 0.5, 0.0]
    assert told(scores) == {"ran": 1.0}


def test_all_of_them_makes_it_all_or_nothing() -> None:
    strict = CodeScorer(CodeReward(**SETTINGS, all_of_them=True))
    assert strict.score([response(ADD), response("def add(a, b): return a * b")]).rewards == [1.0, 0.0]
    assert strict.score([response(ADDS, SUMS), response("print(3)", SUMS)]).rewards == [1.0, 0.0]


@pytest.mark.parametrize(("program", "share"), [(ADDS, 1.0), ("print(3)", 0.5), ("print(1/0)", 0.0), ("print(3); exit(1)", 0.0)])
def test_a_script_earns_the_share_of_the_inputs_that_it_answers(scorer: CodeScorer, program: str, share: float) -> None:
    assert reward(scorer, program, SUMS) == share


def test_a_function_is_asked_for_each_case_also_in_a_class(scorer: CodeScorer) -> None:
    cases = json.dumps({"fn_name": "add", "inputs": [[1, 2], [2, 3]], "outputs": [3, [6]]})
    assert reward(scorer, ADD, cases) == 0.5
    assert reward(scorer, "class Solution:\n    def add(self, a, b): return a + b", cases) == 0.5


def test_check_is_given_the_entry_point(scorer: CodeScorer) -> None:
    tests = (
        "def check(candidate):\n    assert candidate(1, 2) == 3\n    for n in range(3):\n        assert candidate(n, n) == 2 * n"
    )
    assert reward(scorer, ADD, tests, entry_point="add") == 1.0
    assert reward(scorer, "def add(a, b): return 0", tests, entry_point="add") == 0.25


@pytest.mark.parametrize("right", [True, False])
def test_tests_of_unittest_and_pytest_are_run(scorer: CodeScorer, right: bool) -> None:
    program = ADD if right else "def add(a, b): return 0"
    cases = "import unittest\nclass T(unittest.TestCase):\n    def test_it(self):\n        self.assertEqual(add(1, 2), 3)"
    functions = "from solution import add\ndef test_it():\n    assert add(1, 2) == 3"
    assert reward(scorer, program, cases) == reward(scorer, program, functions) == float(right)


def test_tests_see_objects_generators_errors_and_changed_arguments(scorer: CodeScorer) -> None:
    program = """
class Stack:
    def __init__(self): self.items = []
    def push(self, item): self.items.append(item); return self
    def __len__(self): return len(self.items)
    def __eq__(self, other): return self.items == other.items
class Empty(ValueError): pass
def pop(): raise Empty("nothing there")
def sort(values): values.sort()
def count(n): yield from range(n)
def all_kinds(): return (1, 2.5, "a", b"b", None, {3}, frozenset(), {"k": [1j]})
"""
    tests = """
stack = Stack().push(1).push(2)
assert len(stack) == 2 and stack.items == [1, 2] and isinstance(stack, Stack) and stack == Stack().push(1).push(2)
values = [3, 1]; sort(values)
assert values == [1, 3]
assert list(count(3)) == [0, 1, 2]
assert all_kinds() == (1, 2.5, "a", b"b", None, {3}, frozenset(), {"k": [1j]})
for kind in (Empty, ValueError):
    found = ""
    try: pop()
    except kind as error: found = str(error)
    assert found == "nothing there"
"""
    assert reward(scorer, program, tests) == 1.0


@pytest.mark.parametrize(
    "program",
    [
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "def add(a, b):\n    import os\n    os._exit(0)",
        "print('+' * 4 + '.')\ndef add(a, b): print('passed', flush=True)",
        "import os\nfor fd in range(32):\n    try: os.write(fd, b'++++.')\n    except OSError: pass\ndef add(a, b): return None",
        "class Same:\n    def __eq__(self, other): return True\n    def __rsub__(self, other): return 0\ndef add(a, b): return Same()",
        "class Same(int):\n    def __eq__(self, other): return True\ndef add(a, b): return Same(-1)",
        "class Same(list):\n    def __eq__(self, other): return True\ndef add(a, b): return Same()",
        "def add(a, b):\n    import sys, builtins\n    builtins.AssertionError = Exception\n    f = sys._getframe()\n"
        "    while f: f.f_globals['__report__'] = print; f = f.f_back",
        "__report__ = lambda held: None\ndef add(a, b): return None",
        "def add(a, b): raise SystemExit(0)",
        "import threading, os, time\nthreading.Thread(target=lambda: (time.sleep(0.01), os._exit(0))).start()\ndef add(a, b): return 1",
    ],
)  # fmt: skip
def test_nothing_but_right_answers_earns(scorer: CodeScorer, program: str) -> None:
    assert reward(scorer, program) == 0.0


@pytest.mark.parametrize(
    "program",
    [
        "abs = lambda x: 0\nmath = type('M', (), {'isclose': staticmethod(lambda *a: True)})()\ndef half(x): return -1.0",
        "import unittest.mock as math\ndef half(x): return -1.0",
        "class Near(float):\n    __sub__ = __rsub__ = lambda self, other: 0.0\ndef half(x): return Near(-1.0)",
        "class Near:\n    __sub__ = __rsub__ = __abs__ = __float__ = lambda self, *other: 0.0\n    __lt__ = lambda s, o: True\n"
        "def half(x): return Near()",
    ],
)
def test_a_program_does_not_make_the_measure_it_is_measured_with(scorer: CodeScorer, program: str) -> None:
    for imports in ("", "import math\n"):
        assert reward(scorer, program, f"{imports}assert abs(half(3) - 1.5) < 1e-6\nassert math.isclose(half(3), 1.5)") == 0.0


def test_what_a_test_expects_is_nowhere_in_the_program_s_process(scorer: CodeScorer) -> None:
    program = """
import gc
MARK = "-".join(["of", "the", "test"])
def parts(place):
    return list(place) if isinstance(place, (list, tuple, set)) else list(place.values()) if isinstance(place, dict) else []
def answer():
    texts = [part for place in gc.get_objects() for part in parts(place) if isinstance(part, str)]
    return next((text for text in texts if MARK in text and text != MARK), None)
"""
    assert reward(scorer, program, "assert answer() == 'secret-of-the-test'\nassert answer() is None") == 0.5


def test_a_name_of_a_builtin_counts_where_it_is_the_entry_point(scorer: CodeScorer) -> None:
    program, tests = "def sum(a, b): return a + b", "assert sum(1, 2) == 3"
    assert reward(scorer, program, tests) == 0.0
    assert reward(scorer, program, tests, entry_point="sum") == 1.0


@pytest.mark.seconds
def test_how_programs_ended_is_told(scorer: CodeScorer) -> None:
    quick = CodeScorer(CodeReward(**{**SETTINGS, "time_s": 1.0, "output_kib": 8}))
    endings = {
        "timed_out": "while True: pass",
        "out_of_memory": "x = 'x' * 10**10",
        "forbidden": "import socket\nsocket.socket()",
        "wrote_too_much": "print('x' * 100_000)",
    }
    for name, program in endings.items():
        scores = quick.score([response(program, SUMS)])
        assert (scores.rewards[0], told(scores)) == (0.0, {"ran": 1.0, name: 1.0})
    scores = scorer.score([response("def add(a, b): return 'x' * 10**10")])
    assert (scores.rewards[0], told(scores)) == (0.0, {"ran": 1.0, "out_of_memory": 1.0})


def test_a_response_without_a_program_is_worth_nothing_where_one_is_asked_for() -> None:
    fenced = CodeScorer(CodeReward(**SETTINGS, needs_fence=True))
    scores = fenced.score([ScoredResponse("p0", [], ADD_TESTS, [1], [2], ADD)])
    assert (scores.rewards, told(scores)) == ([0.0], {})


def test_a_row_without_tests_is_none_of_its_business_and_one_with_broken_tests_fails_alone(scorer: CodeScorer) -> None:
    scores = scorer.score([response(ADD, None), response(ADD, "def f(:"), response(ADD)])
    assert scores.rewards[0] is None and math.isnan(scores.rewards[1] or 0.0) and scores.rewards[2] == 1.0
    assert scores.failures[0] is None and "prompt p0 cannot be read: it is neither" in str(scores.failures[1])
    assert scores.metrics["ran"][0] is None


def test_tests_may_stand_in_a_column_of_their_own() -> None:
    scorer = CodeScorer(CodeReward(**SETTINGS, tests="test_list"))
    assert scorer.score([response(ADD, None, test_list=["assert add(1, 2) == 3"])]).rewards == [1.0]
    assert scorer.score([response(ADD)]).rewards == [None]


@pytest.mark.seconds
def test_libraries_can_be_imported_where_that_is_wanted(scorer: CodeScorer) -> None:
    program = "import numpy as np\ndef add(a, b): return np.array([a]) + b"
    with_libraries = CodeScorer(CodeReward(**{**SETTINGS, "memory_mib": 1024}, packages=True))
    assert reward(with_libraries, program, "assert add(1, 2) == [3]") == 1.0
    assert reward(scorer, program, "assert add(1, 2) == [3]") == 0.0


def test_a_machine_that_cannot_start_a_process_is_asked_again(scorer: CodeScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_PYTHON", ("/no/such/interpreter",))
    with pytest.raises(TransientRewardError, match="could not run a program"):
        scorer.score([response(ADD)])


def test_a_machine_that_cannot_confine_is_refused_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "build_filter", lambda machine: b"")
    processes._filter.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"keep tested code from the network and other processes; it takes Linux 5\.13"):
            code.build(CodeReward(**SETTINGS), Around.__new__(Around))
        lenient = CodeScorer(CodeReward(**SETTINGS, confine=False))
        assert lenient.score([response(ADD)]).rewards == [1.0]
        assert [note for note in lenient.notes if "not kept from the network" in note]
    finally:
        processes._filter.cache_clear()


def test_the_kind_is_built_by_its_name() -> None:
    scorer = build_scorer(CodeReward(**SETTINGS), Around.__new__(Around))
    assert scorer.name == "code" and not getattr(scorer, "notes", ())
