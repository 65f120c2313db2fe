"""What was drawn comes back from a checkpoint as it was, and is refused where its weights are too old."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import remove_placement_group

from rlhf_core.batching.templates import Renderer
from rlhf_core.cluster.group import ActorSpec, Group
from rlhf_core.cluster.placement import reserve
from rlhf_core.cluster.resources import Bundle, Resources, Waiting
from rlhf_core.cluster.rollout_actor import Sampled
from rlhf_core.models.load import load_tokenizer
from rlhf_core.recipes.online.sampler import Sampler
from rlhf_core.recipes.online.workers import Workers
from rlhf_core.recipes.prompts import Limits, read_prompts
from rlhf_core.rollout.base import Generation
from tests.online.runs import online_job, prompts_folder
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.seconds

# Actors' processes cannot import this file.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

# Without a rollout actor nothing is drawn, so none is called.
NO_ACTORS: Any = None


class SlowActor:
    """Draws one response in two seconds, with the weights that it was sent last."""

    version = 0

    def weights(self, dtype: str, averaged: bool) -> None:
        return None

    def update_weights(self, weights: None, version: int) -> None:
        self.version = version

    def generate(self, prompts: Sequence[Any], sampling: Any, seed: int, listener: None) -> Sampled:
        time.sleep(2)
        return Sampled([[Generation([5], [-0.1], "stop", self.version)] for _ in prompts], 2.0)


@pytest.fixture
def slow_workers(ray_local: None) -> Iterator[Workers]:
    room = Resources((Bundle(0.2),))
    placement = reserve(room, Waiting(60))
    group = Group(ActorSpec("rollout", SlowActor, room.bundles, 0, 1), placement)
    yield Workers(dict.fromkeys(("policy", "reward", "rollout"), group), engine="slow", notes=[], metrics={}, rewards_wait=False)
    group.kill()
    remove_placement_group(placement)


def sampler(folder: Path, workers: Workers = NO_ACTORS, **settings: Any) -> Sampler:
    job = online_job(folder, tiny_model(folder), prompts_folder(folder / "data"), prompts_per_step=1, **settings)
    renderer = Renderer(load_tokenizer(job.model))
    return Sampler(
        job, workers, renderer, read_prompts(job.data, Limits.of(job.config, job.config.rollout), job.events, renderer)
    )


def drawn(step: int, version: int) -> dict[str, Any]:
    """A checkpoint's round in flight: two responses to one prompt."""
    generation = {
        "response_ids": [5, 6],
        "logprobs": [-0.1, -2.3456789],
        "finish_reason": "stop",
        "weight_version": version,
        "learnt": None,
        "trajectory": None,
    }
    return {
        "step": step,
        "first": step,
        "refills": [],
        "seconds": 0.5,
        "groups": [[generation, {**generation, "finish_reason": "length"}]],
    }


def kept(*rounds: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint keeps of a sampler that has drawn these."""
    return {"next_prompt": 4, "drawn": list(rounds), "begun": []}


def test_what_was_begun_is_begun_again_on_the_same_prompts(tmp_path: Path, slow_workers: Workers) -> None:
    before = sampler(tmp_path / "before", slow_workers, async_steps=1)
    before.begin(0, version=0)
    before.begin(1, version=0)
    # Groups of equal rewards are drawn again, on prompts that come after those of the next round.
    refill = before.draw_again(0, 1)
    state = json.loads(json.dumps(before.state()))
    assert state["begun"] == [[0, 0], [1, 1]]
    after = sampler(tmp_path / "after", slow_workers, async_steps=1)
    after.restore(state)
    after.begin(1, version=0)
    after.begin(2, version=1)
    found = {step: each.collect(step).prompts[0].id for each, step in ((before, 0), (before, 1), (after, 1), (after, 2))}
    assert found[1] == before.collect(1).prompts[0].id
    assert len({found[0], found[1], found[2], refill.prompts[0].id}) == 4, "nobody gets the prompt of another"


TURNS = {"messages": [], "turn_ends": [1], "rewards": [0.5], "metrics": {"calls": 1.0}, "ended_by": "done", "failure": None}


@pytest.mark.parametrize("trajectory", [None, TURNS])
def test_the_round_in_flight_survives_a_checkpoint(trajectory: dict[str, Any] | None, tmp_path: Path) -> None:
    state = json.loads(json.dumps(kept(drawn(3, 2))))
    for generation in state["drawn"][0]["groups"][0]:
        generation["trajectory"] = trajectory
    ahead = sampler(tmp_path, async_steps=1)
    assert ahead.state() == {"next_prompt": 0, "drawn": [], "begun": []}
    ahead.restore(state)
    assert ahead.state() == state
    # It is drawn already: beginning it again asks nobody.
    ahead.begin(3, version=3)
    rollouts = ahead.collect(3)
    assert [g.finish_reason for g in rollouts.generations] == ["stop", "length"]
    assert rollouts.sampler_logprobs.tolist()[0] == pytest.approx([-0.1, -2.3456789])
    # It is kept until it was trained on: what fails until then must not cost a round that is drawn.
    assert ahead.state() == state
    ahead.forget(3)
    assert ahead.state()["drawn"] == []


@pytest.mark.parametrize(("async_steps", "version"), [(0, 2), (1, 1), (1, 4)])
def test_weights_that_are_too_old_or_not_there_yet_are_an_error(tmp_path: Path, async_steps: int, version: int) -> None:
    late = sampler(tmp_path, async_steps=async_steps)
    late.restore(kept(drawn(3, version)))
    with pytest.raises(RuntimeError, match=rf"versions \[{version}\]; allowed are {3 - async_steps} to 3"):
        late.collect(3)


def test_only_a_round_that_older_weights_draw_is_waited_for(tmp_path: Path, slow_workers: Workers) -> None:
    ahead = sampler(tmp_path, slow_workers, async_steps=1)
    ahead.begin(3, version=2)
    # The weights after two rounds can draw it again after a restart; those after three cannot.
    assert not ahead.owes(2)
    assert ahead.owes(3)
    assert ahead.state()["drawn"] == []
    ahead.settle(2)
    assert ahead.state()["drawn"] == []
    ahead.settle(3)
    [state] = ahead.state()["drawn"]
    assert state["step"] == 3
    assert state["groups"][0][0]["weight_version"] == 2
    assert not ahead.owes(3)
