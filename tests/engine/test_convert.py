"""A converted checkpoint is the trained model: same numbers, every architecture, every ZeRO stage, adapters or not."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, GenerationConfig

from data_processing.errors import ConfigError
from rlhf_core.batching.collate import ModelBatch, collate
from rlhf_core.batching.rows import TokenRow
from rlhf_core.engine.convert import convert_checkpoint
from rlhf_core.engine.engine import TrainingEngine
from rlhf_core.models.load import load_lm, load_scorer, load_tokenizer
from rlhf_core.models.lora import add_lora, merged_state_dict
from rlhf_core.models.modules import PolicyModule, ScoreModule
from rlhf_core.precision import Dtype
from rlhf_core.settings.models import ConvertConfig
from rlhf_core.settings.training import EngineSettings, LoraSettings, OptimizerSettings
from tests.architectures import architecture
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.seconds

CASES = [
    ("llama", True, 4, 1, "lm"),
    ("llama", True, 0, 1, "lm"),
    ("llama", False, 0, 2, "lm"),
    ("llama", True, 0, 3, "lm"),
    ("gpt2", True, 0, 0, "lm"),
    ("gpt2", True, 4, 2, "score"),
    ("qwen3", False, 4, 3, "lm"),
    ("gemma", True, 0, 1, "score"),
    ("llama", True, 0, 3, "score"),
]
GROUPS_OF_BEAMS = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}


def batch() -> ModelBatch:
    return collate([TokenRow.from_prompt_response([5, 6, 7], [8, 9, 10])], pad_id=0, packed=True)


def module(folder: Path, head: str, rank: int, new_head: bool, dtype: Dtype = "fp32") -> torch.nn.Module:
    if head == "lm":
        model = load_lm(folder, dtype=dtype, attention="sdpa")
    else:
        model = load_scorer(folder, dtype=dtype, attention="sdpa", new_head=new_head)
    if rank:
        add_lora(model, LoraSettings(rank=rank))
    return PolicyModule(model) if head == "lm" else ScoreModule(model)


def outputs(of: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result = of.eval()(batch())
    return result[0] if isinstance(result, tuple) else result


def trained(base: Path, output: Path, head: str, rank: int, zero_stage: int, dtype: Dtype = "fp32") -> torch.Tensor:
    """Three steps from `base`; leaves the checkpoint artifact in `output`, returns the trained model's outputs."""
    engine = TrainingEngine(
        module(base, head, rank, new_head=True, dtype=dtype),
        optimizer=OptimizerSettings(learning_rate=1e-2),
        engine=EngineSettings(dtype=dtype, zero_stage=zero_stage),
        total_steps=3,
    )

    def loss() -> torch.Tensor:
        result = engine.module(batch())
        return -(result[0] if isinstance(result, tuple) else result).sum() / 3

    for _ in range(3):
        engine.train_step([loss])
    output.mkdir()
    engine.save_final(output)
    with engine.evaluating():
        return outputs(engine.module)


@pytest.mark.parametrize(("architecture", "tied", "rank", "zero_stage", "head"), CASES)
def test_converted_model_gives_what_the_trained_one_gave(
    tmp_path: Path, architecture: str, tied: bool, rank: int, zero_stage: int, head: str
) -> None:
    base = tiny_model(tmp_path, architecture, tied=tied)
    expected = trained(base, tmp_path / "checkpoint", head, rank, zero_stage)
    before = outputs(module(base, head, 0, new_head=True))
    facts = convert_checkpoint(tmp_path / "checkpoint", base, tmp_path / "out", ConvertConfig(dtype="fp32"), {"from": "base"})
    got = outputs(module(tmp_path / "out", head, 0, new_head=False))
    assert not torch.allclose(expected, before, atol=1e-3), "training changed nothing, so the comparison shows nothing"
    assert torch.allclose(got, expected, atol=2e-6)
    assert facts["head"] == head
    assert '"from": "base"' in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize(("zero_stage", "dtype"), [(0, "fp32"), (1, "bf16"), (1, "fp32"), (2, "bf16"), (3, "bf16")])
def test_buffers_that_training_changed_survive(tmp_path: Path, zero_stage: int, dtype: Dtype, rank: int) -> None:
    base, name = architecture(tmp_path, "deepseek_v3"), "model.layers.1.mlp.gate.e_score_correction_bias"
    settings = {"optimizer": OptimizerSettings(), "engine": EngineSettings(dtype=dtype, zero_stage=zero_stage), "total_steps": 3}
    engine = TrainingEngine(module(base, "lm", rank, new_head=False, dtype=dtype), **settings)
    bias = dict(engine.module.hf.named_buffers())[name]
    bias += 1.001
    changed = bias.clone()
    assert not torch.equal(changed, changed.bfloat16().float())
    engine.save(tmp_path / "resume", {})
    again = TrainingEngine(module(base, "lm", rank, new_head=False, dtype=dtype), **settings)
    again.load(tmp_path / "resume")
    (tmp_path / "checkpoint").mkdir()
    again.save_final(tmp_path / "checkpoint")
    convert_checkpoint(tmp_path / "checkpoint", base, tmp_path / "out", ConvertConfig(), {})
    assert torch.equal(load_lm(tmp_path / "out", dtype="bf16", attention="sdpa").state_dict()[name], changed)
    assert torch.equal(merged_state_dict(again.module.hf, torch.bfloat16)[name], changed)


@pytest.mark.parametrize("head", ["lm", "score"])
def test_what_is_published_drops_what_its_base_drops(tmp_path: Path, head: str) -> None:
    base = tiny_model(tmp_path, "gpt2")
    dropped = {"resid_pdrop": 0.3, "embd_pdrop": 0.2, "attn_pdrop": 0.1}
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | dropped))
    trained(base, tmp_path / "checkpoint", head, 4, 1)
    convert_checkpoint(tmp_path / "checkpoint", base, tmp_path / "out", ConvertConfig(), {})
    published = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {name: published[name] for name in dropped} == dropped


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
@pytest.mark.parametrize("rank", [0, 4])
def test_bf16_checkpoints_keep_their_fp32_master_weights(tmp_path: Path, zero_stage: int, rank: int) -> None:
    base = tiny_model(tmp_path, "llama", tied=True)
    expected = trained(base, tmp_path / "checkpoint", "lm", rank, zero_stage, dtype="bf16")
    convert_checkpoint(tmp_path / "checkpoint", base, tmp_path / "out", ConvertConfig(dtype="fp32"), {})
    got = outputs(module(tmp_path / "out", "lm", 0, new_head=False))
    assert torch.allclose(got, expected, atol=0.1)
    weights = load_lm(tmp_path / "out", dtype="fp32", attention="sdpa").state_dict()
    finer_than_bf16 = [name for name, w in weights.items() if not torch.equal(w, w.bfloat16().float())]
    assert finer_than_bf16, "the fp32 masters were rounded on the way"


def test_base_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "a", "llama", tied=True)
    trained(base, tmp_path / "checkpoint", "lm", 0, 1)
    other = tiny_model(tmp_path / "b", "gpt2", tied=True)
    with pytest.raises(ConfigError, match="do not fit"):
        convert_checkpoint(tmp_path / "checkpoint", other, tmp_path / "out", ConvertConfig(), {})


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gemma"])
def test_converted_scorer_reads_a_row_at_its_end_token_even_if_that_pads_elsewhere(tmp_path: Path, architecture: str) -> None:
    base = tiny_model(tmp_path, architecture)
    trained(base, tmp_path / "checkpoint", "score", 0, 1)
    convert_checkpoint(tmp_path / "checkpoint", base, tmp_path / "out", ConvertConfig(dtype="fp32"), {})
    tokenizer = load_tokenizer(tmp_path / "out")
    row = [5, 6, 7, 8, tokenizer.eos_token_id]
    scorer = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    score = scorer(input_ids=torch.tensor([row])).logits[0, 0].item()
    ours = ScoreModule(load_scorer(tmp_path / "out", dtype="fp32", attention="sdpa", new_head=False))
    rows = [TokenRow.from_prompt_response(row[:2], row[2:]), TokenRow.from_prompt_response([5], [6])]
    assert ours(collate(rows, pad_id=0, packed=True))[0].item() == pytest.approx(score, abs=1e-6)
    pad = scorer.config.pad_token_id
    if architecture == "gpt2":  # its only special token ends sequences, so there is none to pad with
        assert pad is None
        return
    assert pad == tokenizer.pad_token_id
    padded = torch.tensor([[*row, pad, pad], [*row, 9, 10]])
    mask = (padded != pad).long()
    assert scorer(input_ids=padded, attention_mask=mask).logits[0, 0].item() == pytest.approx(score, abs=1e-5)


def test_converted_lm_stops_where_its_template_ends_a_turn(tmp_path: Path) -> None:
    base = tiny_model(tmp_path, "gemma")
    trained(base, tmp_path / "checkpoint", "lm", 4, 1)
    convert_checkpoint(tmp_path / "checkpoint", base, tmp_path / "out", ConvertConfig(), {})
    tokenizer = load_tokenizer(tmp_path / "out")
    stops = GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    assert sorted(stops) == sorted([tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")])
    assert tokenizer.chat_template == load_tokenizer(base).chat_template


def test_weights_are_cut_into_files_of_the_size_asked_for(tmp_path: Path) -> None:
    base = tiny_model(tmp_path, "llama")
    trained(base, tmp_path / "checkpoint", "lm", 0, 1)
    size = sum(tensor.nbytes for tensor in merged_state_dict(load_lm(base, dtype="bf16", attention="sdpa")).values())
    for limit, n_files in [(size, 1), (size - 1, 2)]:
        output = tmp_path / f"{n_files} files"
        convert_checkpoint(tmp_path / "checkpoint", base, output, ConvertConfig(max_shard_gib=limit / 2**30), {})
        assert len(list(output.glob("*.safetensors"))) == n_files


def test_a_written_folder_that_cannot_be_generated_with_is_refused(tmp_path: Path) -> None:
    base = tiny_model(tmp_path, "llama")
    trained(base, tmp_path / "checkpoint", "lm", 0, 0)
    # A way of decoding that transformers knows by name and no longer has.
    (base / "generation_config.json").write_text(json.dumps(GROUPS_OF_BEAMS))
    with pytest.raises(ConfigError, match="cannot generate"):
        convert_checkpoint(tmp_path / "checkpoint", base, tmp_path / "out", ConvertConfig(dtype="fp32"), {})


@pytest.mark.parametrize("head", ["lm", "score"])
def test_a_converted_language_model_has_answered_a_question(tmp_path: Path, head: str) -> None:
    base = tiny_model(tmp_path, "llama")
    trained(base, tmp_path / "checkpoint", head, 0, 0)
    facts = convert_checkpoint(tmp_path / "checkpoint", base, tmp_path / "out", ConvertConfig(dtype="fp32"), {})
    assert facts.get("generated_tokens", 0) > 0 if head == "lm" else "generated_tokens" not in facts


@pytest.mark.parametrize("name", ["granite", "recurrent_gemma"])
def test_a_scorer_that_transformers_does_not_have_is_converted_and_says_so(tmp_path: Path, name: str) -> None:
    base = architecture(tmp_path, name)
    expected = trained(base, tmp_path / "checkpoint", "score", 0, 0)
    convert_checkpoint(tmp_path / "checkpoint", base, tmp_path / "out", ConvertConfig(dtype="fp32"), {})
    assert torch.allclose(outputs(module(tmp_path / "out", "score", 0, new_head=False)), expected, atol=2e-6)
    assert "load_scorer" in (tmp_path / "out" / "README.md").read_text()
