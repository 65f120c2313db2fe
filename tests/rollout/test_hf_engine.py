"""Generation with transformers: its log-probs are the trainer's, responses end where they should, weights are replaced whole."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

from data_processing.errors import ConfigError
from rlhf_core.batching.collate import collate, target_mask
from rlhf_core.batching.rows import TokenRow
from rlhf_core.models.load import load_lm
from rlhf_core.models.modules import PolicyModule
from rlhf_core.rollout import packed_linear
from rlhf_core.rollout.base import Generation, Sampling, generate
from rlhf_core.rollout.choose import fallback_note
from rlhf_core.rollout.hf_engine import HfGenerator, _draw
from rlhf_core.rollout.packed_linear import pack_linear_layers
from rlhf_core.settings.rollout import RolloutEngine
from tests.rollout.sampled import PROMPTS, changed_weights, is_greedy, largest_gap
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
    groups = generate(generator(folder), PROMPTS, sampling(temperature), seed=1)
    rows = [TokenRow.from_prompt_response(p, g.response_ids) for p, group in zip(PROMPTS, groups, strict=True) for g in group]
    sampled = torch.tensor([lp for group in groups for g in group for lp in g.logprobs])
    batch = collate(rows, pad_id=0, packed=True)
    module = PolicyModule(load_lm(folder, dtype="fp32", attention="sdpa"))
    with torch.no_grad():
        trained = module.eval()(batch, temperature=temperature)[0][target_mask(batch)]
    assert (trained - sampled).abs().max() < 1e-5
    assert 0.99 < (trained - sampled).exp().mean() < 1.01


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_greedy_is_what_the_model_finds_likeliest(tmp_path: Path, arch: Architecture) -> None:
    folder = tiny_model(tmp_path, arch)
    engine, model = generator(folder), changed_weights(folder)
    engine.update_weights(dict(model.state_dict()), 4)
    groups = generate(engine, PROMPTS, sampling(greedy=True, n=1), seed=0)
    assert all(is_greedy(model, prompt, group[0]) for prompt, group in zip(PROMPTS, groups, strict=True))
    assert {generation.weight_version for group in groups for generation in group} == {4}


def test_the_stop_token_ends_a_response_and_is_part_of_it(tmp_path: Path) -> None:
    engine = generator(tiny_model(tmp_path), max_num_seqs=16)
    free = generate(engine, PROMPTS, sampling(greedy=True, n=1), seed=0)
    stop = free[0][0].response_ids[4]
    for before, after in zip(free, generate(engine, PROMPTS, sampling(greedy=True, n=1, stop_ids=(stop,)), seed=0), strict=True):
        ids = before[0].response_ids
        end = ids.index(stop) + 1 if stop in ids else len(ids)
        assert after[0].response_ids == ids[:end]
        assert len(after[0].logprobs) == end
        assert after[0].finish_reason == ("stop" if stop in ids else "length")


def test_a_prompt_is_computed_once_and_ended_responses_leave(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    engine = generator(folder, max_num_seqs=8)
    shapes: list[tuple[int, ...]] = []
    engine._model.register_forward_pre_hook(
        lambda _, __, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    groups = generate(engine, [PROMPTS[0], PROMPTS[2]], sampling(n=4), seed=0)
    assert shapes == [(2, 3)] + [(8, 1)] * 15
    shapes.clear()
    stops = tuple(group[0].response_ids[3] for group in groups)
    stopped = generate(engine, [PROMPTS[0], PROMPTS[2]], sampling(n=4, stop_ids=stops), seed=0)
    batches = [rows for rows, _ in shapes[1:]]
    assert batches == sorted(batches, reverse=True)
    assert batches[-1] < 8
    lengths = [len(g.response_ids) for group in stopped for g in group]
    assert all((g.response_ids[-1] in stops) == (g.finish_reason == "stop") for group in stopped for g in group)
    assert not any(set(g.response_ids[:-1]) & set(stops) for group in stopped for g in group)
    assert largest_gap(load_lm(folder, dtype="fp32", attention="sdpa"), [PROMPTS[0], PROMPTS[2]], stopped, 1.0) < 1e-5
    assert min(lengths) < 16


@pytest.mark.parametrize("samples", [3, 7])
def test_batches_may_cut_through_a_prompts_responses(tmp_path: Path, samples: int) -> None:
    folder = tiny_model(tmp_path)
    groups = generate(generator(folder, max_num_seqs=4), PROMPTS, sampling(n=samples), seed=0)
    assert [len(group) for group in groups] == [samples] * 3
    assert largest_gap(load_lm(folder, dtype="fp32", attention="sdpa"), PROMPTS, groups, 1.0) < 1e-5


@pytest.mark.parametrize("vocabulary", [7, 256, 700])
def test_tokens_are_drawn_in_proportion_and_impossible_ones_never(vocabulary: int) -> None:
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(vocabulary, generator=random)
    logits[::2] = -torch.inf
    settings = sampling(temperature=1.0)
    tokens, logprobs = _draw(logits.expand(20_000, -1).clone(), settings, random)
    expected = torch.log_softmax(logits.double(), -1)
    torch.testing.assert_close(logprobs.double(), expected[tokens], rtol=0, atol=1e-6)
    share = torch.bincount(tokens, minlength=vocabulary) / len(tokens)
    assert not share[::2].any()
    assert (share - expected.exp()).abs().max() < 5 * (0.25 / len(tokens)) ** 0.5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("bias", [False, True])
def test_packed_layers_compute_what_plain_ones_do_and_follow_their_weights(
    dtype: torch.dtype, tolerance: float, bias: bool
) -> None:
    plain = torch.nn.Linear(96, 131, bias=bias, dtype=dtype)
    packed = copy.deepcopy(plain)
    hidden = torch.randn(5, 3, 96, dtype=dtype)
    with torch.inference_mode():
        for _ in range(2):
            pack_linear_layers(torch.nn.Sequential(packed))
            torch.testing.assert_close(packed(hidden), plain(hidden), rtol=tolerance, atol=tolerance)
            for layer in (plain, packed):
                layer.weight.mul_(-2)


def test_bf16_layers_stay_as_they_are_where_onednn_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "takes_bf16", lambda: False)
    layers = torch.nn.ModuleList(torch.nn.Linear(32, 32, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    pack_linear_layers(layers)
    assert ["forward" in vars(layer) for layer in layers] == [False, True]


def test_the_seed_decides_the_draws(tmp_path: Path) -> None:
    engine = generator(tiny_model(tmp_path))
    first, again, other = (ids_of(generate(engine, PROMPTS, sampling(), seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert all(len({tuple(ids) for ids in group}) == 3 for group in first)


def test_draws_follow_the_tempered_distribution(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    model = load_lm(folder, dtype="fp32", attention="sdpa").eval()
    settings = Sampling(temperature=0.6, max_new_tokens=1, n=4000, greedy=False, stop_ids=())
    [group] = generate(generator(folder, max_num_seqs=4000), [PROMPTS[0]], settings, seed=0)
    drawn = torch.bincount(torch.tensor([g.response_ids[0] for g in group]), minlength=model.config.vocab_size) / 4000
    with torch.no_grad():
        expected = torch.softmax(model(torch.tensor([PROMPTS[0]])).logits[0, -1] / 0.6, -1)
    # Total variation of 4000 draws from about 500 outcomes is below 0.1; at temperature 1 it would be about 0.4.
    assert (drawn - expected).abs().sum() / 2 < 0.15


def test_context_is_never_exceeded_and_full_prompts_are_refused(tmp_path: Path) -> None:
    engine = generator(tiny_model(tmp_path))
    [[generation]] = generate(engine, [[5] * 90], sampling(n=1), seed=0)
    assert (len(generation.response_ids), generation.finish_reason) == (6, "length")
    with pytest.raises(ConfigError, match="prompt 1 has 96 tokens; with max_model_len=96"):
        generate(engine, [[5], [5] * 96], sampling(), seed=0)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "qwen3")
    state = dict(changed_weights(folder).state_dict())
    state.pop("model.norm.weight")
    with pytest.raises(ConfigError, match=r"missing \['model.norm.weight'\]"):
        generator(folder).update_weights(state, 1)


def test_a_response_is_there_as_soon_as_it_has_ended(tmp_path: Path) -> None:
    engine = generator(tiny_model(tmp_path), max_num_seqs=16)
    [free] = generate(engine, [PROMPTS[0]], sampling(n=16), seed=0)
    stops = tuple({g.response_ids[k] for k, g in enumerate(free[:6])})
    settings = sampling(n=16, stop_ids=stops)
    given = [(number, len(generation.response_ids)) for number, generation in engine.stream([PROMPTS[0]], settings, 0)]
    assert [length for _, length in given] == sorted(length for _, length in given) and len({length for _, length in given}) > 2
    [in_order] = generate(engine, [PROMPTS[0]], settings, seed=0)
    assert dict(given) == {i: len(g.response_ids) for i, g in enumerate(in_order)}


def test_it_is_told_how_much_is_drawn(tmp_path: Path) -> None:
    told: list[float] = []
    engine = generator(tiny_model(tmp_path, "llama"), max_num_seqs=2)
    long = dataclasses.replace(sampling(n=2), max_new_tokens=40)
    assert generate(engine, PROMPTS, long, 0, told.append) == generate(engine, PROMPTS, long, 0)
    assert told == pytest.approx([(batch + done / 40) / 3 for batch in range(3) for done in (0, 16, 32)])


def test_what_is_slower_than_it_might_be_is_said_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = generator(tiny_model(tmp_path, "llama"))
    assert whole.notes == ()
    assert whole.metrics == {"generation/vllm": 0.0, "generation/kv_preallocated": 1.0, "generation/linear_packed": 1.0}
    windows = generator(tiny_model(tmp_path, "gemma"))
    [note] = windows.notes
    assert "1 of the 2 layers of the key-value cache (DynamicSlidingWindowLayer)" in note
    assert windows.metrics["generation/kv_preallocated"] == 0.5
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert generator(tiny_model(tmp_path / "plain", "llama")).notes == (
        "linear layers are decoded with as they are, which is slower: oneDNN is missing",
    )


def test_transformers_in_place_of_vllm_is_said_unless_it_was_asked_for() -> None:
    [note] = fallback_note(RolloutEngine.auto, RolloutEngine.hf, "vLLM does not import here")
    assert note == "generating with transformers, which is slower than vLLM: vLLM does not import here"
    assert fallback_note(RolloutEngine.hf, RolloutEngine.hf, "asked for") == ()
    assert fallback_note(RolloutEngine.auto, RolloutEngine.vllm, "it imports") == ()
