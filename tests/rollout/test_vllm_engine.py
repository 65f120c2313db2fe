"""vLLM in an actor of its own, as in training: replaced weights show at once, log-probs are those of what was sampled."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from rlhf_core.batching.templates import Renderer
from rlhf_core.cluster.rollout_actor import RolloutSetup, RolloutWorker
from rlhf_core.cluster.weights import to_arrays
from rlhf_core.models.load import load_tokenizer
from rlhf_core.recipes.prompts import Prompt
from rlhf_core.rollout.base import Generation, Sampling
from rlhf_core.rollout.choose import choose_engine
from rlhf_core.settings.environment import EnvironmentSettings
from rlhf_core.settings.rollout import RolloutEngine
from tests.architectures import architecture
from tests.rollout.listeners import Breaks, Heard
from tests.rollout.sampled import PROMPTS, changed_weights, is_greedy, largest_gap, token_logprobs, wide_headed_model
from tests.tiny_models import tiny_model

pytest.importorskip("vllm", reason="vLLM is not installed on this machine", exc_type=ImportError)
pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.slow]

NO_STOP: tuple[int, ...] = ()
OPENINGS = [SimpleNamespace(ids=ids) for ids in PROMPTS]


def sampling(temperature: float = 1.0, n: int = 2, greedy: bool = False, stop_ids: tuple[int, ...] = NO_STOP) -> Sampling:
    return Sampling(temperature=temperature, max_new_tokens=12, n=n, greedy=greedy, stop_ids=stop_ids)


class Engine:
    """An actor with a vLLM engine on one model folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.actor: Any = ray.remote(RolloutWorker).options(num_cpus=0).remote()
        self.name = ray.get(
            self.actor.setup.remote(RolloutSetup(RolloutEngine.vllm, folder, "fp32", 96, 16, 16, 0.3, 1, False, 0.0))
        )

    def generate(self, settings: Sampling, seed: int = 5) -> list[list[Generation]]:
        return ray.get(self.actor.generate.remote(OPENINGS, settings, seed)).groups

    def update(self, state: dict[str, torch.Tensor], version: int) -> None:
        ray.get(self.actor.update_weights.remote(to_arrays(state), version))


@pytest.fixture(scope="module", params=[("llama", True), ("qwen3", False)], ids=["tied", "untied"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Iterator[Engine]:
    arch, tied = request.param
    engine = Engine(wide_headed_model(tmp_path_factory.mktemp(arch), arch, tied=tied))
    yield engine
    ray.kill(engine.actor)


@pytest.mark.parametrize("name", ["qwen3_moe", "glm4_moe", "mixtral"])
def test_experts_which_a_cpu_would_not_renew_are_sampled_from_elsewhere(tmp_path: Path, name: str) -> None:
    folder = architecture(tmp_path, name, head_dim=32)
    chosen, reason = choose_engine(RolloutEngine.auto, folder)
    assert (chosen, "experts" in reason) == (RolloutEngine.hf, True)


def test_new_weights_show_at_once_and_version_is_on_every_sample(engine: Engine) -> None:
    # The same prompts before and after: a stale prefix cache or a stale tied head would show.
    before = engine.generate(sampling(greedy=True, n=1))
    for version in (1, 2):
        model = changed_weights(engine.folder, seed=version)
        engine.update(dict(model.state_dict()), version)
        after = engine.generate(sampling(greedy=True, n=1))
        assert all(is_greedy(model, prompt, group[0]) for prompt, group in zip(PROMPTS, after, strict=True))
        assert [g[0].response_ids for g in after] != [g[0].response_ids for g in before]
        assert {g.weight_version for group in after for g in group} == {version}
        assert largest_gap(model, PROMPTS, engine.generate(sampling()), 1.0) < 2e-4
        before = after


def test_logprobs_are_those_of_the_tempered_distribution(engine: Engine) -> None:
    model = changed_weights(engine.folder, seed=9)
    engine.update(dict(model.state_dict()), 9)
    for temperature in (0.6, 1.0):
        groups = engine.generate(sampling(temperature))
        assert largest_gap(model, PROMPTS, groups, temperature) < 2e-4


def test_the_same_seed_draws_the_same_and_samples_differ(engine: Engine) -> None:
    first, again, other = (engine.generate(sampling(), seed) for seed in (7, 7, 8))
    assert [[g.response_ids for g in group] for group in first] == [[g.response_ids for g in group] for group in again]
    assert [[g.response_ids for g in group] for group in first] != [[g.response_ids for g in group] for group in other]
    assert all(group[0].response_ids != group[1].response_ids for group in first)


def test_the_stop_token_ends_a_response_and_is_part_of_it(engine: Engine) -> None:
    [likely, *_], *_ = engine.generate(sampling(greedy=True, n=1))
    stop = likely.response_ids[3]
    [stopped, *_], *_ = engine.generate(sampling(greedy=True, n=1, stop_ids=(stop,)))
    end = likely.response_ids.index(stop) + 1
    assert stopped.response_ids == likely.response_ids[:end]
    assert (stopped.finish_reason, likely.finish_reason) == ("stop", "length")
    assert len(stopped.logprobs) == end


def test_conversations_go_on_from_the_tokens_that_vllm_drew(tmp_path: Path, ray_local: None) -> None:
    folder = wide_headed_model(tmp_path, "llama", tied=True)
    renderer = Renderer(load_tokenizer(folder))
    messages = [[{"role": "user", "content": f"what is {i}?"}] for i in range(4)]
    asked = [Prompt(f"p{i}", each, None, renderer.prompt_ids(each)) for i, each in enumerate(messages)]
    actor: Any = ray.remote(RolloutWorker).options(num_cpus=0).remote()
    environment = EnvironmentSettings(path="tests.environments.made:Slow", options={"replies": 2})
    ray.get(actor.setup.remote(RolloutSetup(RolloutEngine.vllm, folder, "fp32", 160, 16, 16, 0.3, 1, False, 0.0, environment)))
    # A random model hardly ends its turns: here every sixteenth token does.
    settings = Sampling(1.0, 48, 4, False, tuple(range(3, len(renderer.tokenizer), 16)))
    first, again = (ray.get(actor.generate.remote(asked, settings, 5)).groups for _ in range(2))
    ray.kill(actor)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    turns = []
    for prompt, group in zip(asked, first, strict=True):
        for generation in group:
            assert generation.trajectory is not None and generation.trajectory.failure is None
            expected = token_logprobs(model, prompt.ids, generation.response_ids, 1.0)
            drawn = expected.gather(1, torch.tensor(generation.response_ids)[:, None])[:, 0]
            gaps = (drawn - torch.tensor(generation.logprobs))[torch.tensor(generation.is_learnt)]
            assert gaps.abs().max() < 2e-4
            turns.append(len(generation.trajectory.turn_ends))
    assert max(turns) == 3
    assert [[g.response_ids for g in group] for group in first] == [[g.response_ids for g in group] for group in again]


def test_a_listener_hears_of_each_response_when_it_has_ended(engine: Engine, tmp_path: Path) -> None:
    [likely, *_], *_ = engine.generate(sampling(greedy=True, n=1))
    settings = sampling(greedy=True, n=2, stop_ids=(likely.response_ids[2],))
    sampled = ray.get(engine.actor.generate.remote(OPENINGS, settings, 5, Heard(tmp_path / "heard")))
    heard = [tuple(map(int, line.split())) for line in (tmp_path / "heard").read_text().splitlines()]
    assert sorted(heard) == sorted((p, len(g.response_ids)) for p, group in enumerate(sampled.groups) for g in group)
    assert [length for _, length in heard] == sorted(length for _, length in heard)
    assert len({length for _, length in heard}) > 1


def test_a_call_that_is_given_up_leaves_nothing_to_the_next(engine: Engine) -> None:
    before = engine.generate(sampling())
    with pytest.raises(ray.exceptions.RayTaskError, match="enough"):
        ray.get(engine.actor.generate.remote(OPENINGS, sampling(stop_ids=(before[0][0].response_ids[1],)), 5, Breaks()))
    assert engine.generate(sampling()) == before


def test_auto_avoids_vllm_where_its_kernels_lack_the_head_size(tmp_path: Path) -> None:
    chosen, reason = choose_engine(RolloutEngine.auto, tiny_model(tmp_path))
    assert chosen is RolloutEngine.hf
    assert "head size 8" in reason
