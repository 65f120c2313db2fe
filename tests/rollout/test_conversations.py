"""Responses of several turns: token in, token out; only what the model said is learnt; what fails fails alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_core.batching.templates import Renderer
from rlhf_core.models.load import load_tokenizer
from rlhf_core.recipes.online.rollouts import Rollouts
from rlhf_core.recipes.prompts import Prompt, scored_response
from rlhf_core.rewards.compose import ComposedReward
from rlhf_core.rewards.environment import EnvironmentScorer
from rlhf_core.rewards.weighing import Weighing
from rlhf_core.rollout.base import Generation, Sampling
from rlhf_core.rollout.conversations import Conversations
from rlhf_core.rollout.hf_engine import HfGenerator
from rlhf_core.settings.environment import EnvironmentSettings
from tests.rollout.sampled import token_logprobs
from tests.rollout.talkative import talkative_model

pytestmark = pytest.mark.seconds
MADE = "tests.environments.made"
ROOM = 256


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talkative_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(model: Path) -> HfGenerator:
    return HfGenerator(model, dtype="fp32", max_model_len=ROOM, max_num_seqs=64, trust_remote_code=False)


@pytest.fixture(scope="module")
def renderer(model: Path) -> Renderer:
    return Renderer(load_tokenizer(model))


def prompts(renderer: Renderer, count: int = 4) -> list[Prompt]:
    asked = [[{"role": "user", "content": f"what is {i} {'and ' * (i % 3)}the answer?"}] for i in range(count)]
    return [Prompt(f"p{i}", messages, None, renderer.prompt_ids(messages)) for i, messages in enumerate(asked)]


def held(
    engine: HfGenerator, renderer: Renderer, name: str, *, n: int = 4, new_tokens: int = 24, seed: int = 3, **settings: Any
) -> list[Generation]:
    options = settings.pop("options", {})
    environment = EnvironmentSettings(path=f"{MADE}:{name}", options=options, **settings)
    conversations = Conversations(engine, renderer, environment, ROOM)
    sampling = Sampling(1.0, new_tokens, n, False, tuple(renderer.stop_ids))
    try:
        ended = dict(conversations.stream(prompts(renderer), sampling, seed))
    finally:
        conversations.close()
    assert sorted(ended) == list(range(4 * n))
    return [ended[number] for number in range(4 * n)]


def turns_of(generation: Generation) -> Iterator[list[int]]:
    """The tokens of each of the model's turns."""
    trajectory = generation.trajectory
    assert trajectory is not None
    start = 0
    for end in trajectory.turn_ends:
        while not generation.is_learnt[start]:
            start += 1
        yield generation.response_ids[start : end + 1]
        start = end + 1


def test_a_conversation_is_turns_and_replies_of_the_tokens_that_were_drawn(
    model: Path, engine: HfGenerator, renderer: Renderer
) -> None:
    generations = held(engine, renderer, "Echo", options={"replies": 2})
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    several = 0
    for number, generation in enumerate(generations):
        trajectory, prompt = generation.trajectory, prompts(renderer)[number // 4]
        assert trajectory is not None and len(generation.response_ids) == len(generation.logprobs) == len(generation.is_learnt)
        turns = list(turns_of(generation))
        said = [message for message in trajectory.messages if message["role"] == "assistant"]
        assert [renderer.tokenizer.decode(ids, skip_special_tokens=True) for ids in turns] == [m["content"] for m in said]
        assert sum(map(len, turns)) == sum(generation.is_learnt), "what the environment said is not learnt"
        # Sampled from the very tokens before it: the model's own log-probs say so.
        expected = token_logprobs(reference, prompt.ids, generation.response_ids, 1.0)
        drawn = expected.gather(1, torch.tensor(generation.response_ids)[:, None])[:, 0]
        gaps = (drawn - torch.tensor(generation.logprobs))[torch.tensor(generation.is_learnt)]
        assert gaps.abs().max() < 1e-4
        ended = len(turns) == 3 and generation.response_ids[-1] in renderer.stop_ids
        assert trajectory.ended_by == ("done" if ended else "cut")
        assert trajectory.rewards == [float(i + 1) for i in range(len(turns))][: len(turns) - (not ended)] + [None] * (not ended)
        several += len(turns) == 3
    assert several >= 4, "enough of them reach their third turn"


def test_the_same_seed_holds_the_same_conversations(engine: HfGenerator, renderer: Renderer) -> None:
    first, again, other = (held(engine, renderer, "Echo", seed=seed) for seed in (5, 5, 6))
    assert first == again != other


def test_conversations_end_by_turns_tokens_and_time(engine: HfGenerator, renderer: Renderer) -> None:
    by_turns = held(engine, renderer, "Endless", max_turns=2)
    assert {g.trajectory.ended_by for g in by_turns if g.trajectory} <= {"turns", "cut"}
    assert any(g.trajectory and g.trajectory.ended_by == "turns" and len(g.trajectory.turn_ends) == 2 for g in by_turns)
    by_tokens = held(engine, renderer, "Endless", max_turns=50, max_response_tokens=40)
    assert any(g.trajectory and g.trajectory.ended_by == "tokens" for g in by_tokens)
    assert max(len(g.response_ids) for g in by_tokens) <= 40
    by_time = held(engine, renderer, "Endless", max_turns=50, max_seconds=1e-6)
    assert any(g.trajectory and g.trajectory.ended_by == "time" for g in by_time)


def test_what_fails_is_said_and_fails_alone(engine: HfGenerator, renderer: Renderer) -> None:
    for name, broken, said in (
        ("Raises", (1, 2), "no such tool"),
        ("RaisesAtOnce", (1,), "not this one"),
        ("Dies", (2,), "ended with code 3"),
    ):
        generations = held(engine, renderer, name)
        failures = [g.trajectory.failure for g in generations if g.trajectory]
        assert any(said in (why or "") for number in broken for why in failures[4 * number : 4 * number + 4]), name
        if name != "Dies":  # with its process the others of that moment are gone too
            assert not any(why for number in set(range(4)) - set(broken) for why in failures[4 * number : 4 * number + 4])


def test_an_environment_that_hangs_is_given_up(engine: HfGenerator, renderer: Renderer) -> None:
    started = time.monotonic()
    generations = held(engine, renderer, "Hangs", n=1, step_timeout_s=0.5)
    assert time.monotonic() - started < 20
    failures = [g.trajectory.failure for g in generations if g.trajectory and g.trajectory.ended_by == "failed"]
    assert failures and all("no answer within 0.5 s (environment.step_timeout_s)" in (why or "") for why in failures)


def test_a_round_lays_out_what_was_said_and_earned(engine: HfGenerator, renderer: Renderer) -> None:
    asked = [prompt for prompt in prompts(renderer) for _ in range(4)]
    generations = held(engine, renderer, "RaisesAtOnce", options={"replies": 1})
    responses = [scored_response(p, g, renderer.tokenizer) for p, g in zip(asked, generations, strict=True)]
    rollouts = Rollouts.of(asked, generations, responses, 1.0)
    assert rollouts.failed == [4 <= i < 8 for i in range(16)]
    assert not rollouts.mask[4:8].any(), "nothing of a conversation that never began counts"
    rewards = ComposedReward([(EnvironmentScorer("each"), Weighing(1.0))]).score(responses)
    laid, ends = rollouts.at_learnt_tokens(rewards.tokens), rollouts.turn_ends
    assert ends is not None
    for i, generation in enumerate(generations):
        trajectory = generation.trajectory
        assert trajectory is not None
        if trajectory.failure:
            assert rewards.total[i] is None and "not this one" in str(rewards.failures["environment"][i])
            continue
        lengths = [len(ids) for ids in turns_of(generation)]
        places = [sum(lengths[: k + 1]) - 1 for k in range(len(lengths))]
        assert ends[i].nonzero()[:, 0].tolist() == places
        assert laid[i][places].tolist() == [reward or 0.0 for reward in trajectory.rewards]
        assert responses[i].text == trajectory.messages[-1]["content"], "what the model said last"
    assert rewards.metrics["environment/turns"][0] in (1.0, 2.0)


def test_a_conversation_survives_being_kept(engine: HfGenerator, renderer: Renderer) -> None:
    for generation in held(engine, renderer, "Echo"):
        assert Generation.of(asdict(generation)) == generation
