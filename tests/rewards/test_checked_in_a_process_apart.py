"""What computes with a model's text has a process of its own: mathematics, reasoning-gym, and the process itself."""

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_processing.errors import ConfigError
from rlhf_core.rewards.base import Scores
from rlhf_core.rewards.verifiers.apart import Apart
from rlhf_core.rewards.verifiers.verifier import OverTimeError
from tests.rewards.verified import response, scorer, worth

pytestmark = pytest.mark.seconds

FUNCTIONS = """
import os, socket, subprocess, time
def double(x):
    print("printed", flush=True)
    return 2 * x
def breaks(x):
    raise KeyError("broken")
def sleeps(x):
    try:
        time.sleep(600)
    except Exception:
        pass
def computes(x):
    return str(9 ** 9 ** 9)[:1]
def ends(x):
    os._exit(1)
def ends_at_0(x):
    return x or os._exit(1)
def fills(x):
    try:
        return len(bytearray(8 << 30))
    except MemoryError:
        return "refused"
def environment(x):
    return sorted(os.environ)
def tries(path):
    refused = []
    for act in (lambda: open(path, "w"), lambda: os.system("true"), lambda: subprocess.run(["true"]), lambda: os.fork(),
                lambda: socket.create_connection(("127.0.0.1", 9)), lambda: os.remove(__file__), lambda: os.kill(os.getppid(), 0)):
        try:
            act()
        except PermissionError:
            refused.append(True)
    return len(refused)
"""


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Apart]]:
    (tmp_path / "functions_for_apart.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[Apart] = []

    def make(name: str) -> Apart:
        made.append(Apart(f"functions_for_apart:{name}", "json", limit_s=0.5))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_call_gives_what_the_function_returns_whatever_it_prints(apart: Callable[[str], Apart]) -> None:
    double = apart("double")
    assert [double(2), double("ab\n"), double("x" * 100_000)] == [4, "ab\nab\n", "x" * 200_000]


@pytest.mark.parametrize("name", ["sleeps", "computes", "ends"])
def test_a_call_that_does_not_end_is_over_in_any_thread(name: str, apart: Callable[[str], Apart]) -> None:
    called, over = apart(name), list[BaseException]()

    def call() -> None:
        for _ in range(2):
            with pytest.raises(OverTimeError) as caught:
                called(1)
            over.append(caught.value)

    thread = threading.Thread(target=call)
    started = time.monotonic()
    thread.start()
    thread.join(60.0)
    assert len(over) == 2 and time.monotonic() - started < 60.0


def test_the_call_after_one_that_ended_the_process_works(apart: Callable[[str], Apart]) -> None:
    called = apart("ends_at_0")
    with pytest.raises(OverTimeError):
        called(0)
    assert called(5) == 5


def test_its_memory_is_limited(apart: Callable[[str], Apart]) -> None:
    assert apart("fills")(1) == "refused"


def test_what_a_function_raises_is_said(apart: Callable[[str], Apart]) -> None:
    with pytest.raises(RuntimeError, match="breaks' raised KeyError: 'broken'"):
        apart("breaks")(1)


def test_what_does_not_import_is_said() -> None:
    with pytest.raises(ConfigError, match="no_such_module_here"):
        Apart("no_such_module_here:name", "json", 1.0)(1)


def test_it_writes_nothing_starts_nothing_and_knows_no_secret(
    apart: Callable[[str], Apart], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "secret")
    assert apart("tries")(str(tmp_path / "written")) == 7
    assert not (tmp_path / "written").exists()
    assert "SOME_TOKEN" not in apart("environment")(1)


def test_its_process_ends_with_it(apart: Callable[[str], Apart]) -> None:
    double = apart("double")
    double(1)
    assert double._process is not None
    pid = double._process.pid
    double.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.fixture(scope="module")
def mathematics() -> Any:
    return scorer("math", limit_s=2.0)


@pytest.mark.parametrize(
    ("text", "label", "expected"),
    [
        (r"so \boxed{\frac{1}{2}}", "0.5", 1.0),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", 1.0),
        (r"\boxed{\{2, 1\}}", r"\{1, 2\}", 1.0),
        ("Answer: (1, 2]", "(1,2]", 1.0),
        ("so we get $x = 3$", "3", 1.0),
        ("<think>$3$</think>so we get $4$", "3", 0.0),
        (r"\boxed{\sqrt{3}}", r"$\sqrt{2}$", 0.0),
        (r"\boxed{__import__('os').abort()}", "5", 0.0),
    ],
)
def test_mathematics_is_compared_by_what_it_means(mathematics: Any, text: str, label: str, expected: float) -> None:
    assert mathematics.score([response(text, label)]).rewards == [expected]


def test_an_expression_that_hangs_is_worth_nothing_and_the_others_are_scored(mathematics: Any) -> None:
    found: list[Scores] = []
    asked = [response(rf"\boxed{{{text}}}", "5") for text in ("9^{9^{9^{9}}}", "5", r"\sum_{i=1}^{10^{10}} \sin(i)^{i}", "5")]
    thread = threading.Thread(target=lambda: found.append(mathematics.score(asked)))
    thread.start()
    thread.join(90.0)
    assert found[0].rewards == [0.0, 1.0, 0.0, 1.0]
    assert found[0].metrics["timed_out"] == [1.0, 0.0, 1.0, 0.0]


def test_a_label_without_mathematics_fails_on_its_responses(mathematics: Any) -> None:
    found = mathematics.score([response(r"\boxed{5}", "$$")])
    assert math.isnan(found.rewards[0]) and "nothing that math-verify reads" in found.failures[0]


def entry(**fields: Any) -> dict[str, str]:
    return {"dataset": "spiral_matrix", "entry": json.dumps({"question": "?", "answer": "1 2 3", "metadata": {}, **fields})}


@pytest.fixture(scope="module")
def gym() -> Any:
    return scorer("reasoning_gym")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("<answer>1 2 3</answer>", 1.0), ("<answer>[1, 2, 3]</answer>", 0.0), ("4", 0.0), ("<think>1 2 3</think>", 0.0)],
)
def test_reasoning_gym_scores_with_the_checker_of_the_dataset(gym: Any, text: str, expected: float) -> None:
    [value] = gym.score([response(text, **entry())]).rewards
    assert value == pytest.approx(expected, abs=0.5) and (value == 1.0) == (expected == 1.0)


def test_what_reasoning_gym_evaluates_does_nothing_here(gym: Any, tmp_path: Path) -> None:
    hostile = f"<answer>[__import__('os').system('touch {tmp_path}/made'), open('{tmp_path}/made', 'w')]</answer>"
    assert gym.score([response(hostile, **entry())]).rewards[0] < 1.0
    assert not list(tmp_path.iterdir())


def test_rows_of_other_sources_are_not_for_reasoning_gym(gym: Any) -> None:
    assert gym.score([response("1 2 3", "1 2 3")]).rewards == [None]


@pytest.mark.parametrize(("kind", "library"), [("math", "math_verify"), ("numeric", "pint"), ("reasoning_gym", "reasoning_gym")])
def test_a_library_that_is_missing_is_named_with_what_installs_it(
    kind: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf_core.rewards.verifiers.verifier.find_spec", lambda name: None if name == library else object())
    with pytest.raises(ConfigError, match=r'not installed: pip install "alignflow\[rewards\]"'):
        scorer(kind)
    assert worth("numeric", "5 km", "5", units=False) == 1.0
