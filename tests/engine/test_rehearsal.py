"""What could not be converted after training is not trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_processing.errors import ConfigError
from rlhf_core.engine import rehearsal
from rlhf_core.engine.engine import TrainingEngine
from rlhf_core.engine.rehearsal import rehearse_convert
from rlhf_core.models.load import load_lm, load_scorer
from rlhf_core.models.lora import add_lora
from rlhf_core.models.modules import PolicyModule, ScoreModule
from rlhf_core.settings.training import EngineSettings, LoraSettings, OptimizerSettings
from tests.architectures import architecture
from tests.tiny_models import tiny_model

BOTH_WAYS = pytest.mark.parametrize("small_bytes", [rehearsal.SMALL_BYTES, 0], ids=["in full", "in outline"])


@pytest.fixture
def rehearse(tmp_path: Path, small_bytes: int, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainingEngine]:
    monkeypatch.setattr(rehearsal, "SMALL_BYTES", small_bytes)

    def run(base: Path, rank: int = 4, head: str = "lm", change: Callable[[Any], None] = lambda hf: None, stage: int = 1) -> Any:
        if head == "lm":
            model = load_lm(base, dtype="fp32", attention="sdpa")
        else:
            model = load_scorer(base, dtype="fp32", attention="sdpa", new_head=True)
        if rank:
            add_lora(model, LoraSettings(rank=rank))
        module = PolicyModule(model) if head == "lm" else ScoreModule(model)
        change(module.hf)
        settings = EngineSettings(dtype="fp32", zero_stage=stage)
        engine = TrainingEngine(module, optimizer=OptimizerSettings(), engine=settings, total_steps=1)
        rehearse_convert(engine, tmp_path / "rehearsal")
        return engine

    return run


@BOTH_WAYS
@pytest.mark.parametrize(("head", "rank", "stage"), [("lm", 4, 1), ("lm", 0, 3), ("score", 4, 2)])
def test_a_model_that_converts_passes_and_leaves_nothing(
    tmp_path: Path, rehearse: Callable[..., TrainingEngine], head: str, rank: int, stage: int
) -> None:
    state = torch.random.get_rng_state()
    base = architecture(tmp_path, "deepseek_v3")
    rehearse(base, rank, head, lambda hf: torch.random.set_rng_state(state), stage)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not (tmp_path / "rehearsal").exists()


@BOTH_WAYS
@pytest.mark.parametrize("kind", ["parameter", "buffer"])
def test_a_tensor_that_convert_would_not_know_is_named(tmp_path: Path, rehearse: Callable[..., Any], kind: str) -> None:
    def add(hf: Any) -> None:
        if kind == "parameter":
            hf.model.layers[0].register_parameter("extra", torch.nn.Parameter(torch.zeros(3)))
        else:
            hf.model.layers[0].register_buffer("extra", torch.zeros(3))

    with pytest.raises(ConfigError, match=r"not converted afterwards: .*model\.layers\.0\.extra"):
        rehearse(tiny_model(tmp_path), change=add)


@BOTH_WAYS
def test_a_tensor_of_another_shape_is_named(tmp_path: Path, rehearse: Callable[..., Any]) -> None:
    def widen(hf: Any) -> None:
        hf.resize_token_embeddings(hf.config.vocab_size + 8)
        hf.config.vocab_size -= 8

    with pytest.raises(ConfigError, match=r"not converted afterwards: .*embed_tokens\.weight"):
        rehearse(tiny_model(tmp_path), rank=0, change=widen)


@BOTH_WAYS
def test_generation_settings_without_effect_do_not_stop_a_model(tmp_path: Path, rehearse: Callable[..., Any]) -> None:
    base = tiny_model(tmp_path)
    _set_generation(base, temperature=0.9, top_p=0.6, length_penalty=2.0)
    rehearse(base)


@BOTH_WAYS
def test_generation_settings_that_cannot_be_saved_are_refused(tmp_path: Path, rehearse: Callable[..., Any]) -> None:
    base = tiny_model(tmp_path)
    _set_generation(base, pad_token_id=-1)
    with pytest.raises(ConfigError, match=r"not converted afterwards: .*pad_token_id"):
        rehearse(base)


@BOTH_WAYS
def test_a_tokenizer_that_is_gone_is_missed_before_training(tmp_path: Path, rehearse: Callable[..., Any]) -> None:
    base = tiny_model(tmp_path)

    def lose(hf: Any) -> None:
        for path in base.glob("tokenizer*"):
            path.unlink()

    with pytest.raises(ConfigError, match="its tokenizer cannot be loaded"):
        rehearse(base, change=lose)


def _set_generation(base: Path, **settings: Any) -> None:
    path = base / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
