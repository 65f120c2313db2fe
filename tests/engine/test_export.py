"""`alignflow export` of a checkpoint: the fp32 master weights, bit for bit, whoever wrote it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from data_processing.errors import ConfigError
from rlhf_core.engine.convert import convert_checkpoint
from rlhf_core.engine.zero_folder import export_zero
from rlhf_core.models.load import load_lm
from rlhf_core.settings.models import ConvertConfig
from tests.engine.test_convert import module, outputs, trained
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.seconds


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_bare_checkpoint_gives_what_the_live_weights_gave(tmp_path: Path, zero_stage: int) -> None:
    base = tiny_model(tmp_path / "base")
    expected = trained(base, tmp_path / "run", "lm", rank=0, zero_stage=zero_stage)
    shutil.move(tmp_path / "run" / "zero", tmp_path / "theirs")
    export_zero(tmp_path / "theirs", base, tmp_path / "model", dtype="fp32")
    assert torch.equal(outputs(module(tmp_path / "model", "lm", 0, new_head=False)), expected)
    # As our own conversion of the whole checkpoint has it.
    shutil.move(tmp_path / "theirs", tmp_path / "run" / "zero")
    convert_checkpoint(tmp_path / "run", base, tmp_path / "ours", ConvertConfig(dtype="fp32"), lineage={})
    one, other = (load_lm(tmp_path / name, dtype="fp32", attention="auto").state_dict() for name in ("model", "ours"))
    assert all(torch.equal(one[name], own) for name, own in other.items())


def test_weights_are_rounded_once(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    trained(base, tmp_path / "run", "lm", rank=0, zero_stage=1)
    for dtype in ("fp32", "bf16"):
        export_zero(tmp_path / "run" / "zero", base, tmp_path / dtype, dtype=dtype)  # type: ignore[arg-type]
    exact, rounded = (load_lm(tmp_path / name, dtype="fp32", attention="auto").state_dict() for name in ("fp32", "bf16"))
    assert all(torch.equal(own.bfloat16().float(), rounded[name]) for name, own in exact.items())
    assert any(not torch.equal(own, rounded[name]) for name, own in exact.items())


def test_what_cannot_be_exported_is_told(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    trained(base, tmp_path / "adapters", "lm", rank=4, zero_stage=1)
    with pytest.raises(ConfigError, match="holds adapters"):
        export_zero(tmp_path / "adapters" / "zero", base, tmp_path / "model", dtype="fp32")
    trained(base, tmp_path / "run", "lm", rank=0, zero_stage=1)
    with pytest.raises(ConfigError, match="has no step 'step_9'; it has"):
        export_zero(tmp_path / "run" / "zero", base, tmp_path / "model", dtype="fp32", tag="step_9")
    other = tiny_model(tmp_path / "other", "gpt2")
    with pytest.raises(ConfigError, match="checkpoint and base model do not fit"):
        export_zero(tmp_path / "run" / "zero", other, tmp_path / "model", dtype="fp32")


def test_what_is_published_is_set_as_its_base(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    trained(base, tmp_path / "run", "lm", rank=0, zero_stage=1)
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**settings, "attention_dropout": 0.25}))
    export_zero(tmp_path / "run" / "zero", base, tmp_path / "model", dtype="fp32")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["attention_dropout"] == 0.25
