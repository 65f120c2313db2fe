"""A model's batches are laid out in the ways in which it is seen to compute what it computes for each row alone.

Over architectures of every kind: attention alone, convolutions, recurrent states, ALiBi, experts, and those that do something
to their logits that we do or do not know by name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import architectures
from data_processing.errors import ConfigError
from rlhf_core.batching.collate import collate
from rlhf_core.batching.rows import TokenRow
from rlhf_core.cluster.actors import ModelSetup, ScoringWorker
from rlhf_core.models.layouts import Layouts
from rlhf_core.models.load import load_lm, load_scorer
from rlhf_core.models.modules import PolicyModule, ScoreModule
from rlhf_core.precision import Dtype
from rlhf_core.settings.training import EngineSettings, LoraSettings, OptimizerSettings, Packing
from tests.architectures import ARCHITECTURES

SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2_SHAPE = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256}
MAMBA_SHAPE = {"mamba_d_state": 16, "mamba_n_heads": 4, "mamba_chunk_size": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


class Case(NamedTuple):
    """A tiny model of one type, and what it is to be found able to."""

    packed: bool
    shared: bool
    settings: dict[str, Any] = {}  # noqa: RUF012
    attention: str = "sdpa"
    own_head: bool = True


CASES = {
    "llama": Case(True, True),
    "qwen3": Case(True, True, {"head_dim": 16}),
    "gpt2": Case(True, True, GPT2_SHAPE | {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}),
    "opt": Case(True, True, {"ffn_dim": 128, "word_embed_proj_dim": 64, "init_std": 0.15, "dropout": 0.1}),
    "gemma2": Case(True, True, {"head_dim": 16, "sliding_window": 16, "final_logit_softcapping": 3.0}),
    "mixtral": Case(True, True, {"num_local_experts": 4, "router_jitter_noise": 0.1}),
    # Their attention is not told of segments; position ids do.
    "stablelm": Case(True, False),
    "nemotron": Case(True, False),
    # ALiBi counts positions by itself.
    "falcon": Case(False, False, {"alibi": True, "new_decoder_architecture": False, "multi_query": True}),
    "bloom": Case(False, False, {"n_head": 4, "n_layer": 3}, "eager"),
    # Convolutions and recurrent states.
    "falcon_h1": Case(False, False, MAMBA_SHAPE | {"mamba_d_ssm": 64, "mamba_d_head": 16, "lm_head_multiplier": 0.5}),
    "lfm2": Case(False, False, {"layer_types": ["conv", "full_attention", "conv"]}),
    "bamba": Case(False, False, MAMBA_SHAPE | {"mamba_d_head": 32, "mamba_n_groups": 1, "attn_layer_indices": [1]}),
    "qwen3_next": Case(
        False,
        False,
        EXPERTS
        | {"shared_expert_intermediate_size": 64, "head_dim": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2}
        | {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
        | {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    ),
    "recurrent_gemma": Case(
        False,
        False,
        {"lru_width": 64, "attention_window_size": 16, "head_dim": 16, "logits_soft_cap": 1.0, "w_init_variance_scale": 1.0},
    ),
    # Its logits are multiplied under the name by which Granite divides.
    "hyperclovax": Case(True, True, {"logits_scaling": 2.0}),
    # Its head has a layer before the output layer, and Llama 4 does not show its backbone.
    "modernbert-decoder": Case(True, True, own_head=False),
    "llama4_text": Case(True, True, {"num_local_experts": 2, "intermediate_size_mlp": 128, "head_dim": 16}, own_head=False),
}
# What docs/models.md says of the other types that are measured there.
PACKS = [
    "qwen2",
    "qwen3_moe",
    "mistral",
    "gemma3_text",
    "phi3",
    "phi",
    "olmo2",
    "gpt_neox",
    "smollm3",
    "granite",
    "cohere",
    "deepseek_v3",
    "glm4_moe",
]
CASES |= {name: Case(True, True, {"num_hidden_layers": 2} | ARCHITECTURES[name]) for name in PACKS}
# transformers has no SDPA for its attention sinks.
CASES["gpt_oss"] = Case(False, False, {"num_hidden_layers": 2} | ARCHITECTURES["gpt_oss"], attention="eager")
every_type = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a case's model; made when it is first asked for."""
    root = tmp_path_factory.mktemp("models")

    def folder(name: str, **settings: Any) -> Path:
        path = root / "-".join([name, *(f"{key}={value}" for key, value in settings.items())])
        if not path.exists():
            config = AutoConfig.for_model(name, **SHAPE | CASES[name].settings | settings)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)
        return path

    return folder


def policy(folder: Path, name: str, dtype: Dtype = "fp32", packing: Packing = Packing.auto) -> PolicyModule:
    return PolicyModule(load_lm(folder, dtype=dtype, attention=CASES[name].attention), packing)


def rows() -> list[TokenRow]:
    """Runs of a prompt with several responses, and prompts on their own."""
    generator, found = torch.Generator().manual_seed(1), []
    draw = lambda n: torch.randint(3, 480, (n,), generator=generator).tolist()  # noqa: E731
    for prompt_length, responses in [(5, [9]), (7, [30, 4]), (40, [12, 1, 20]), (1, [2, 20])]:
        prompt = draw(prompt_length)
        found += [TokenRow.from_prompt_response(prompt, draw(length)) for length in responses]
    return found


@torch.no_grad()
def expected(folder: Path, name: str, row: TokenRow) -> Tensor:
    """Straight from transformers: one row, all logits."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=CASES[name].attention)
    every = model(torch.tensor([row.ids]), use_cache=False).logits[0].log_softmax(-1)
    return torch.stack([every[i - 1, row.ids[i]] for i in range(len(row)) if row.is_target[i]])


@every_type
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_a_model_can_is_found_out(name: str, dtype: Dtype, folders: Callable[..., Path]) -> None:
    case = CASES[name]
    layouts = policy(folders(name), name, dtype).layouts
    assert (layouts.packed, layouts.shared, layouts.own_head) == (case.packed, case.shared, case.own_head)
    slower = (not case.packed, case.packed and not case.shared, not case.own_head, case.attention == "eager")
    assert len(layouts.notes) == sum(slower)
    assert all(f"'{name}'" in note for note in layouts.notes)


def test_the_page_says_what_is_seen_here() -> None:
    results = {
        row[0]: row[-1] for row in architectures.rows_on(architectures.PAGE.read_text(encoding="utf-8"), architectures.COMMAND)
    }
    seen = {(True, True): "packs and shares prompts", (True, False): "packs", (False, False): "pads"}
    assert results == {name: seen[CASES[name].packed, CASES[name].shared] for name in ARCHITECTURES}


@every_type
def test_training_reads_what_the_model_says_of_each_row_alone(name: str, folders: Callable[..., Path]) -> None:
    worker = ScoringWorker()
    engine = EngineSettings(dtype="fp32", micro_batch_tokens=128, attention=CASES[name].attention)
    notes = worker.setup(
        ModelSetup(
            folders(name),
            engine,
            LoraSettings(rank=0),
            OptimizerSettings(),
            1,
            0,
            seed=0,
            new_head=False,
            trust_remote_code=False,
        )
    )
    values = worker.predict(lambda module, batch: {"values": module(batch)[0]}, rows())["values"]
    for i, row in enumerate(rows()):
        torch.testing.assert_close(values[i, : row.n_targets], expected(folders(name), name, row), atol=1e-4, rtol=0)
    assert notes == worker.module.layouts.notes


@torch.no_grad()
@every_type
def test_training_mode_is_eval_mode(name: str, folders: Callable[..., Path]) -> None:
    module = policy(folders(name), name)
    batch = collate(rows(), pad_id=0, packed=module.layouts.packed, shared=module.layouts.shared)
    assert torch.equal(module.train()(batch)[0], module.eval()(batch)[0])


@pytest.mark.parametrize("name", ["lfm2", "falcon_h1", "bloom"])
def test_in_bf16_a_leak_smaller_than_rounding_is_seen(name: str, folders: Callable[..., Path]) -> None:
    layouts = policy(folders(name, initializer_range=0.04), name, "bf16").layouts
    assert not layouts.packed
    assert float(layouts.notes[0].split("up to ")[1].split()[0]) < 0.1


@pytest.mark.parametrize("name", ["lfm2", "falcon", "bamba"])
def test_packing_is_refused_where_it_was_asked_for_and_is_wrong(name: str, folders: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=rf"engine\.packing is 'on'.*'{name}'.*differ by up to [\d.]+ nats.*'auto' or 'off'"):
        policy(folders(name), name, packing=Packing.on)


def test_packing_that_is_right_may_be_asked_for_or_turned_off(folders: Callable[..., Path]) -> None:
    assert policy(folders("llama"), "llama", packing=Packing.on).layouts == Layouts(packed=True, shared=True)
    assert policy(folders("llama"), "llama", packing=Packing.off).layouts == Layouts(packed=False, shared=False)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gpt2", "stablelm", "falcon", "qwen3_next"])
def test_scorers_are_found_out_too_and_score_each_row_as_if_alone(name: str, folders: Callable[..., Path]) -> None:
    scorer = load_scorer(folders(name), dtype="fp32", attention="sdpa", new_head=True)
    module = ScoreModule(scorer)
    assert (module.layouts.packed, module.layouts.shared) == (CASES[name].packed, CASES[name].shared)
    # A new head is all zeros; what was drawn to tell layouts apart is gone.
    assert torch.count_nonzero(scorer.score.weight) == 0
    torch.nn.init.normal_(scorer.score.weight, generator=torch.Generator().manual_seed(0))
    scores = module(collate(rows(), pad_id=0, packed=module.layouts.packed, shared=module.layouts.shared))
    alone = [scorer(torch.tensor([row.ids]), use_cache=False).logits[0, 0] for row in rows()]
    torch.testing.assert_close(scores, torch.stack(alone), atol=1e-4, rtol=0)


def test_scores_in_bf16_are_as_fine_as_its_hidden_states(folders: Callable[..., Path]) -> None:
    scorer = load_scorer(folders("llama"), dtype="bf16", attention="sdpa", new_head=True)
    module = ScoreModule(scorer)
    torch.nn.init.normal_(scorer.score.weight, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    some = [TokenRow([1, *torch.randint(3, 480, (8,), generator=generator).tolist()], [False] * 9) for _ in range(256)]
    scores = module(collate(some, pad_id=0, packed=True)).tolist()
    assert max(map(abs, scores)) > 4
    assert len(set(scores)) == 256


def test_the_search_leaves_no_trace(folders: Callable[..., Path]) -> None:
    model = load_lm(folders("gpt2"), dtype="fp32", attention="sdpa").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    PolicyModule(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_is_random_in_training_mode_is_refused(folders: Callable[..., Path]) -> None:
    model = load_lm(folders("gpt2"), dtype="fp32", attention="sdpa")
    model.transformer.drop.p = 0.1
    state = torch.random.get_rng_state()
    with pytest.raises(ConfigError, match=r"'gpt2' .*in training mode it is not the model.*differ by up to [\d.]+ nats"):
        PolicyModule(model)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_whose_padded_batches_are_wrong_is_refused(folders: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_lm(folders("llama"), dtype="fp32", attention="sdpa")
    embed = model.model.embed_tokens.forward
    monkeypatch.setattr(model.model.embed_tokens, "forward", lambda ids: embed(ids.roll(1, 0)))
    with pytest.raises(ConfigError, match=r"'llama' .*rows in a padded batch are not.*differ by up to [\d.]+ nats"):
        PolicyModule(model)


@pytest.mark.parametrize("name", ["modernbert-decoder", "llama4_text"])
def test_a_model_with_a_head_of_its_own_learns_from_its_own_logits(name: str, folders: Callable[..., Path]) -> None:
    module = policy(folders(name), name)
    some = rows()[:3]
    logprobs, entropies = module(collate(some, pad_id=0, packed=True, shared=True), temperature=0.7, with_entropy=True)
    (logprobs.sum() + entropies.sum()).backward()
    model = AutoModelForCausalLM.from_pretrained(folders(name))
    total = torch.zeros(())
    for i, row in enumerate(some):
        every = (model(torch.tensor([row.ids])).logits[0, row.prompt_length - 1 : -1] / 0.7).log_softmax(-1)
        own = every.gather(-1, torch.tensor(row.ids[row.prompt_length :])[:, None])[:, 0]
        spread = -(every.exp() * every).sum(-1)
        torch.testing.assert_close(logprobs[i, : row.n_targets], own, atol=1e-5, rtol=0)
        torch.testing.assert_close(entropies[i, : row.n_targets], spread, atol=1e-5, rtol=0)
        total = total + own.sum() + spread.sum()
    total.backward()
    gradients = {f"hf.{parameter}": value.grad for parameter, value in model.named_parameters()}
    for parameter, value in module.named_parameters():
        torch.testing.assert_close(value.grad, gradients[parameter], atol=1e-4, rtol=1e-3)
