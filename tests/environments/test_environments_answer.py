"""Environments in their own process: they are asked by line, and what breaks there breaks its conversations only."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from data_processing.errors import ConfigError
from data_processing.procedures.optimal import optimal_procedure, render
from data_processing.procedures.policy import draw_policy
from rlhf_core.environments.base import Reply, load_environment, read_reply
from rlhf_core.environments.calculator import Calculator
from rlhf_core.environments.host import EnvironmentFailedError, Host
from rlhf_core.environments.procedures import Revision
from rlhf_core.recipes.online.conversations import tools_of
from rlhf_core.settings.environment import EnvironmentSettings

MADE = "tests.environments.made"
TURN = {"turn": {"role": "assistant", "content": "a b c"}}


@contextmanager
def hosted(name: str, **options: Any) -> Iterator[Host]:
    host = Host(f"{MADE}:{name}", options)
    try:
        yield host
    finally:
        host.close()


def begun(host: Host, number: int, question: str = "q") -> Future[Any]:
    prompt = [{"role": "user", "content": question}]
    return host.ask(number, "reset", {"prompt": prompt, "label": None, "columns": {}})


@pytest.mark.seconds
@pytest.mark.parametrize("name", ["Echo", "Awaited"])
def test_each_conversation_has_an_environment_of_its_own(name: str) -> None:
    with hosted(name, replies=2) as host:
        for number in (1, 2):
            begun(host, number, f"q{number}").result(30)
        first = [host.ask(1, "step", TURN).result(30) for _ in range(3)]
        assert [answer["reward"] for answer in first] == [1.0, 2.0, 3.0]
        assert [answer["done"] for answer in first] == [False, False, True]
        assert first[0]["messages"] == [{"role": "user", "content": "3 words about q1"}] and first[0]["metrics"] == {
            "echoes": 1.0
        }
        assert host.ask(2, "step", TURN).result(30)["messages"][0]["content"] == "3 words about q2"


@pytest.mark.seconds
def test_what_an_environment_raises_is_told_with_its_line() -> None:
    with hosted("Raises") as host:
        begun(host, 1, "this and that").result(30)
        with pytest.raises(EnvironmentFailedError, match=r"KeyError: 'no such tool' \(line \d+ of .*made\.py: raise KeyError"):
            host.ask(1, "step", TURN).result(30)
        begun(host, 2).result(30)
        assert host.ask(2, "step", TURN).result(30)["reward"] == 1.0


@pytest.mark.seconds
def test_a_process_that_dies_fails_those_that_wait_and_starts_again_for_others() -> None:
    with hosted("Dies") as host:
        begun(host, 1, "q2").result(30)
        with pytest.raises(EnvironmentFailedError, match="its process ended with code 3"):
            host.ask(1, "step", TURN).result(30)
        begun(host, 2, "q1").result(30)
        assert host.ask(2, "step", TURN).result(30)["reward"] == 1.0
    assert not [child for child in psutil.Process().children() if "environments.worker" in " ".join(child.cmdline())]


@pytest.mark.seconds
def test_nothing_is_left_of_a_sampler_that_is_killed_while_an_environment_hangs() -> None:
    asks = (
        f"from rlhf_core.environments.host import Host; import time; host = Host('{MADE}:Hangs', {{}}); "
        "given = {'prompt': [{'role': 'user', 'content': 'q'}], 'label': None, 'columns': {}}; "
        f"host.ask(1, 'reset', given).result(60); host.ask(1, 'step', {TURN!r}); time.sleep(0.3); print('asked', flush=True); time.sleep(60)"
    )
    sampler = subprocess.Popen([sys.executable, "-c", asks], stdout=subprocess.PIPE, text=True)
    assert sampler.stdout is not None and sampler.stdout.readline() == "asked\n"
    [environments] = psutil.Process(sampler.pid).children()
    sampler.kill()
    sampler.communicate()
    _, alive = psutil.wait_procs([environments], timeout=20)
    for process in alive:
        process.kill()
    assert not alive


@pytest.mark.seconds
def test_a_slow_one_holds_up_its_own_conversation_only() -> None:
    with hosted("Slow") as host:
        for number, question in ((1, "this and that"), (2, "this")):
            begun(host, number, question).result(30)
        started = time.monotonic()
        slow, quick = host.ask(1, "step", TURN), host.ask(2, "step", TURN)
        assert quick.result(30)["reward"] == 1.0 and time.monotonic() - started < 0.8 and not slow.done()
        assert slow.result(30)["reward"] == 1.0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "returned a int; return a Reply"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "role 'assistant'; allowed are user, tool, system"),
        ({"messages": [{"role": "user"}]}, "each with a text as content"),
        ({}, "no messages and is not done"),
        ({"done": True, "reward": float("nan")}, "a reward is a finite number"),
        ({"done": True, "rewards": 1}, "rewards"),
    ],
)
def test_a_wrong_reply_says_what_is_wrong(given: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        read_reply(given)


def test_nothing_is_the_end() -> None:
    assert read_reply(None) == Reply(done=True)


@pytest.mark.parametrize(
    ("path", "said"),
    [("nowhere:X", "does not import"), (f"{MADE}:None", "must be a class"), ("json:JSONDecoder", "reset and step")],
)
def test_a_path_that_leads_to_no_environment_says_so(path: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_environment(path)


@pytest.mark.seconds
def test_tools_are_those_of_the_class() -> None:
    assert tools_of(EnvironmentSettings()) is None
    assert tools_of(EnvironmentSettings(path=f"{MADE}:Echo")) is None
    with pytest.raises(ConfigError, match=r"environment\.path='nowhere:X' does not load"):
        tools_of(EnvironmentSettings(path="nowhere:X"))


def said(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def test_the_calculator_answers_calls_and_checks_the_end() -> None:
    made = Calculator(turn_cost=0.1)
    made.reset([], "12", {})
    reply = made.step(said("So <calc>2 * (3 + 4)</calc> and <calc>__import__('os')</calc> and <calc>1/3 - 1</calc>"))
    assert reply.messages[0]["content"].splitlines() == ["2 * (3 + 4) = 14", "__import__('os') = ?", "1/3 - 1 = -2/3"]
    assert reply.reward == -0.1 and reply.metrics == {"calls": 3, "bad_calls": 1}
    assert made.step(said("It is 12.0")) == Reply(done=True, reward=1.0, metrics={"right": 1.0})
    assert made.step(said("It is 12 or 13")).reward == 0.0 and made.step(said("unknown")).reward == 0.0
    with pytest.raises(ValueError, match="is no number"):
        made.reset([], "twelve", {})


@pytest.mark.parametrize("text", ["9**9**9", "1/0", "(" * 500, "f()", "'a'*3", "True + 1", "1 if 1 else 2"])
def test_the_calculator_computes_nothing_else(text: str) -> None:
    made = Calculator()
    made.reset([], "1", {})
    assert made.step(said(f"<calc>{text}</calc>")).metrics["bad_calls"] == 1


def test_a_revision_earns_what_it_gains() -> None:
    import random

    policy = draw_policy(random.Random(3), difficulty=2)
    right = render(optimal_procedure(policy))
    made = Revision()
    made.reset([], policy.model_dump_json(), {})
    first = made.step(said("A. nonsense"))
    assert not first.done and first.reward == 0.0 and "A checker found:\n- " in first.messages[0]["content"]
    assert made.step(said(right)) == Reply(done=True, reward=1.0, metrics={"score": 1.0})
    at_once = Revision()
    at_once.reset([], policy.model_dump_json(), {})
    assert at_once.step(said(right)).done
    stubborn = Revision(tries=1)
    stubborn.reset([], policy.model_dump_json(), {})
    stubborn.step(said("A. nonsense"))
    assert stubborn.step(said("A. nonsense")).done, "no try is left"
