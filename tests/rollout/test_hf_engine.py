"""Generation with transformers: its log-probs are the trainer's, responses end where they should, weights are replaced whole."""

from pathlib import Path

import pytest
import torch

from data_processing.errors import ConfigError
from rlhf_core.batching.collate import collate, target_mask
from rlhf_core.batching.rows import TokenRow
from rlhf_core.models.load import load_lm
from rlhf_core.models.modules import PolicyModule
from rlhf_core.rollout.base import Generation, Sampling
from rlhf_core.rollout.hf_engine import HfGenerator
from tests.rollout.sampled import PROMPTS, changed_weights, is_greedy
from tests.tiny_models import ARCHITECTURES, Architecture, tiny_model


def generator(folder: Path, max_num_seqs: int = 4) -> HfGenerator:
    return HfGenerator(folder, dtype="fp32", max_model_len=96, max_num_seqs=max_num_seqs, trust_remote_code=False)


def sampling(temperature: float = 1.0, n: int = 3, greedy: bool = False, stop_ids: tuple[int, ...] = ()) -> Sampling:
    return Sampling(temperature=temperature, max_new_tokens=16, n=n, greedy=greedy, stop_ids=stop_ids)


def ids_of(groups: list[list[Generation]]) -> list[list[list[int]]]:
    return [[generation.response_ids for generation in group] for group in groups]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_sampler_and_trainer_agree(tmp_path: Path, arch: Architecture, temperature: float) -> None:
    folder = tiny_model(tmp_path, arch)
    groups = generator(folder).generate(PROMPTS, sampling(temperature), seed=1)
    rows = [TokenRow.from_prompt_response(p, g.response_ids) for p, group in zip(PROMPTS, groups, strict=True) for g in group]
    sampled = torch.tensor([lp for group in groups for g in group for lp in g.logprobs])
    batch = collate(rows, pad_id=0, packed=True)
    module = PolicyModule(load_lm(folder, dtype="fp32", attention="sdpa"))
    with torch.no_grad():
        trained = module.eval()(batch, temperature=temperature)[0][target_mask(batch)]
    assert (trained - sampled).abs().max() < 2e-4
    assert 0.99 < (trained - sampled).exp().mean() < 1.01


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_greedy_is_what_the_model_finds_likeliest(tmp_path: Path, arch: Architecture) -> None:
    folder = tiny_model(tmp_path, arch)
    engine, model = generator(folder), changed_weights(folder)
    engine.update_weights(dict(model.state_dict()), 4)
    groups = engine.generate(PROMPTS, sampling(greedy=True, n=1), seed=0)
    assert all(is_greedy(model, prompt, group[0]) for prompt, group in zip(PROMPTS, groups, strict=True))
    assert {generation.weight_version for group in groups for generation in group} == {4}


def test_the_stop_token_ends_a_response_and_is_part_of_it(tmp_path: Path) -> None:
    engine = generator(tiny_model(tmp_path), max_num_seqs=16)
    free = engine.generate(PROMPTS, sampling(greedy=True, n=1), seed=0)
    stop = free[0][0].response_ids[4]
    for before, after in zip(free, engine.generate(PROMPTS, sampling(greedy=True, n=1, stop_ids=(stop,)), seed=0), strict=True):
        ids = before[0].response_ids
        end = ids.index(stop) + 1 if stop in ids else len(ids)
        assert after[0].response_ids == ids[:end]
        assert len(after[0].logprobs) == end
        assert after[0].finish_reason == ("stop" if stop in ids else "length")


def test_the_seed_decides_the_draws(tmp_path: Path) -> None:
    engine = generator(tiny_model(tmp_path))
    first, again, other = (ids_of(engine.generate(PROMPTS, sampling(), seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert all(len({tuple(ids) for ids in group}) == 3 for group in first)


def test_draws_follow_the_tempered_distribution(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    model = load_lm(folder, dtype="fp32", attention="sdpa").eval()
    settings = Sampling(temperature=0.6, max_new_tokens=1, n=4000, greedy=False, stop_ids=())
    [group] = generator(folder, max_num_seqs=4000).generate([PROMPTS[0]], settings, seed=0)
    drawn = torch.bincount(torch.tensor([g.response_ids[0] for g in group]), minlength=model.config.vocab_size) / 4000
    with torch.no_grad():
        expected = torch.softmax(model(torch.tensor([PROMPTS[0]])).logits[0, -1] / 0.6, -1)
    # Total variation of 4000 draws from about 500 outcomes is below 0.1; at temperature 1 it would be about 0.4.
    assert (drawn - expected).abs().sum() / 2 < 0.15


def test_context_is_never_exceeded_and_full_prompts_are_refused(tmp_path: Path) -> None:
    engine = generator(tiny_model(tmp_path))
    [[generation]] = engine.generate([[5] * 90], sampling(n=1), seed=0)
    assert (len(generation.response_ids), generation.finish_reason) == (6, "length")
    with pytest.raises(ConfigError, match="prompt 1 has 96 tokens; with max_model_len=96"):
        engine.generate([[5], [5] * 96], sampling(), seed=0)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "qwen3")
    state = dict(changed_weights(folder).state_dict())
    state.pop("model.norm.weight")
    with pytest.raises(ConfigError, match=r"missing \['model.norm.weight'\]"):
        generator(folder).update_weights(state, 1)
