"""Folders that cannot work are refused by name; what is loaded computes the same in training and in scoring."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, Gemma3Config

from data_processing.errors import ConfigError
from rlhf_core.models.folder import check_model_folder, max_positions
from rlhf_core.models.load import load_lm, load_scorer, load_tokenizer, set_dropout
from tests.tiny_models import ARCHITECTURES, POSITIONS, Architecture, tiny_model


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        check_model_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("missing", "message"),
    [("config.json", "no readable config.json"), ("model.safetensors", "no weights"), ("tokenizer*", "no tokenizer")],
)
def test_a_folder_without_a_part_is_refused(tmp_path: Path, missing: str, message: str) -> None:
    folder = tiny_model(tmp_path, "llama")
    for path in folder.glob(missing):
        path.unlink()
    with pytest.raises(ConfigError, match=message):
        check_model_folder(folder)


def test_an_index_of_a_format_that_nobody_reads_is_no_part_of_the_model(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "llama")
    left_over = {"weight_map": {"lm_head.weight": "pytorch_model-00001-of-00002.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(left_over))
    check_model_folder(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "llama")
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    shards = sorted((tmp_path / "sharded").glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[0].unlink()
    with pytest.raises(ConfigError, match=shards[0].name):
        load_lm(tmp_path / "sharded", dtype="fp32", attention="sdpa")


def test_code_in_a_folder_needs_trust(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "llama")
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    with pytest.raises(ConfigError, match=r"AutoModelForCausalLM.*trust_remote_code"):
        check_model_folder(folder)
    check_model_folder(folder, trust_remote_code=True)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_sequences_longer_than_the_positions_are_refused(tmp_path: Path, arch: Architecture) -> None:
    folder = tiny_model(tmp_path, arch)
    assert max_positions(folder) == POSITIONS[arch]
    check_model_folder(folder, max_length_tokens=POSITIONS[arch])
    with pytest.raises(ConfigError, match=f"more than the {POSITIONS[arch]} positions"):
        check_model_folder(folder, max_length_tokens=POSITIONS[arch] + 1)


def test_a_torchvision_that_cannot_be_imported_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"torchvision does not fit.*nms does not exist"):
        load_lm(tiny_model(tmp_path, "llama"), dtype="fp32", attention="auto")


def test_weights_are_never_filled_in_at_random(tmp_path: Path) -> None:
    untied = tiny_model(tmp_path, "llama", tied=False)
    with pytest.raises(ConfigError, match=r"score\.weight"):
        load_scorer(untied, dtype="fp32", attention="sdpa", new_head=False)
    scorer = load_scorer(untied, dtype="fp32", attention="sdpa", new_head=True)
    assert torch.count_nonzero(scorer.score.weight) == 0
    scorer.save_pretrained(tmp_path / "scorer")
    with pytest.raises(ConfigError, match=r"lm_head\.weight"):
        load_lm(tmp_path / "scorer", dtype="fp32", attention="sdpa")


def test_an_unknown_attention_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="flash_attention_2"):
        load_lm(tiny_model(tmp_path, "llama"), dtype="bf16", attention="flash_attention_2")


def test_attention_left_open_is_sdpa_where_the_model_has_it(tmp_path: Path) -> None:
    bloom = BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2)
    AutoModelForCausalLM.from_config(bloom).save_pretrained(tmp_path / "bloom")
    with pytest.raises(ConfigError, match="'sdpa'"):
        load_lm(tmp_path / "bloom", dtype="fp32", attention="sdpa")
    folders = tmp_path / "bloom", tiny_model(tmp_path, "llama")
    chosen = [load_lm(folder, dtype="fp32", attention="auto").config._attn_implementation for folder in folders]
    assert chosen == ["eager", "sdpa"]


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_training_mode_computes_what_eval_mode_does(tmp_path: Path, arch: Architecture) -> None:
    folder = tiny_model(tmp_path, arch)
    edit_config(folder, attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5, attention_dropout=0.5)
    model = load_lm(folder, dtype="fp32", attention="sdpa")
    ids = torch.arange(3, 20)[None]
    assert torch.equal(model.train()(ids).logits, model.eval()(ids).logits)


def test_whatever_makes_training_random_is_off_however_its_config_names_it(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "llama")
    values = {
        "attention_dropout": 0.1,
        "embd_pdrop": 0.1,
        "decoder_layerdrop": 0.2,
        "drop_path_rate": 0.3,
        "router_jitter_noise": 0.4,
    }
    kept = {"token_dropout": True, "classifier_dropout": None, "dropout_kind": "variational"}
    edit_config(folder, **values, **kept)
    config = load_lm(folder, dtype="fp32", attention="sdpa").config
    assert [getattr(config, name) for name in values] == [0.0] * len(values)
    assert {name: getattr(config, name) for name in kept} == kept


def test_dropout_of_a_nested_config_is_off_and_comes_back() -> None:
    like = Gemma3Config(text_config={"attention_dropout": 0.1})
    config = Gemma3Config(text_config={"attention_dropout": 0.1})
    set_dropout(config, None)
    assert config.text_config.attention_dropout == 0.0
    set_dropout(config, like)
    assert config.text_config.attention_dropout == 0.1


def test_a_tokenizer_without_a_pad_token_pads_with_its_end(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model(tmp_path, "gpt2"))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model(tmp_path, "gpt2"), broken)
    (broken / "tokenizer.json").write_text("{}")
    (broken / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigError, match="tokenizer cannot be loaded"):
        load_tokenizer(broken)
