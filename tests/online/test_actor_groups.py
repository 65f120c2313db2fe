"""Groups of actors: the first failure ends the wait with its traceback, and room is reserved whole or not at all."""

import os
import signal
import sys
import time
from collections.abc import Iterator

import pytest
import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from data_processing.errors import DivergedError, PreemptedError
from rlhf_core.cluster.group import ActorFailedError, ActorSpec, Group, wait
from rlhf_core.cluster.placement import reserve
from rlhf_core.cluster.resources import Bundle, Resources, Waiting

# Actors' processes cannot import this file.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

BUNDLE = Bundle(0.2)

pytestmark = [pytest.mark.seconds, pytest.mark.usefixtures("ray_local")]


class Worker:
    """Does what the tests ask for."""

    def twice(self, number: int) -> int:
        return 2 * number

    def pid(self) -> int:
        return os.getpid()

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def sleep(self) -> None:
        time.sleep(120)

    def diverge(self) -> None:
        raise DivergedError("reward 'x' gave nan")

    def break_down(self) -> None:
        raise RuntimeError("the kernel is missing")


@pytest.fixture(scope="module")
def room(ray_local: None) -> Iterator[PlacementGroup]:
    placement = reserve(Resources((BUNDLE,) * 3), Waiting(60))
    yield placement
    remove_placement_group(placement)


@pytest.fixture
def pair(room: PlacementGroup) -> Iterator[Group]:
    group = Group(ActorSpec("pair", Worker, [BUNDLE] * 2, 0, 1), room)
    yield group
    group.kill()


@pytest.fixture
def single(room: PlacementGroup) -> Iterator[Group]:
    group = Group(ActorSpec("single", Worker, [BUNDLE], 2, 1), room)
    yield group
    group.kill()


def test_results_come_back_a_list_a_group(pair: Group, single: Group) -> None:
    assert wait(pair.call("twice", 3), single.call("twice", 4), timeout_s=60) == [[6, 6], [8]]


def test_an_actor_killed_ends_the_wait_for_the_others(pair: Group, single: Group) -> None:
    wait(pair.call("pid"), single.call("pid"), timeout_s=60)
    start = time.monotonic()
    with pytest.raises(ActorFailedError, match=r"single \(rank 0\) in die: the actor died"):
        wait(pair.call("sleep"), single.call("die"), timeout_s=100)
    assert time.monotonic() - start < 30


def test_a_call_beside_is_not_waited_for_but_its_failure_is_noticed(pair: Group, single: Group) -> None:
    assert wait(pair.call("twice", 3), timeout_s=60, beside=single.call("sleep")) == [[6, 6]]
    start = time.monotonic()
    with pytest.raises(ActorFailedError, match=r"single \(rank 0\) in die"):
        single.kill()
        wait(pair.call("sleep"), timeout_s=100, beside=single.call("die"))
    assert time.monotonic() - start < 30


def test_an_exception_comes_with_its_traceback(pair: Group, single: Group) -> None:
    with pytest.raises(ActorFailedError, match="the kernel is missing") as caught:
        wait(pair.call("sleep"), single.call("break_down"), timeout_s=100)
    assert "single (rank 0) in break_down" in str(caught.value)
    assert "in break_down\n" in str(caught.value)


def test_our_own_errors_keep_their_class_and_exit_code(single: Group) -> None:
    with pytest.raises(DivergedError, match="gave nan") as caught:
        wait(single.call("diverge"), timeout_s=60)
    assert caught.value.exit_code == 12


def test_silence_ends_at_the_deadline(single: Group) -> None:
    wait(single.call("pid"), timeout_s=60)
    with pytest.raises(ActorFailedError, match=r"no answer within 1 s from single \(rank 0\) in sleep"):
        wait(single.call("sleep"), timeout_s=1)


def test_a_wait_is_ended_by_what_it_does_meanwhile(single: Group) -> None:
    wait(single.call("pid"), timeout_s=60)
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise PreemptedError("asked to stop")

    start = time.monotonic()
    with pytest.raises(PreemptedError, match="asked to stop"):
        wait(single.call("sleep"), timeout_s=100, meanwhile=stop)
    assert time.monotonic() - start < 10
    assert calls == 2
