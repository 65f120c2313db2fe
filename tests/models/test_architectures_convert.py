"""Models of every kind come back from training, checkpoint and convert as they were trained, their buffers and experts too."""

from pathlib import Path

import pytest

from benchmarks import architectures, whole_pipelines
from benchmarks.architectures import SAME, trained_and_converted
from rlhf_core.settings.training import LoraSettings
from tests.architectures import ARCHITECTURES, architecture

LORA = LoraSettings(rank=4)
CASES = [
    *[(name, LORA) for name in ("deepseek_v3", "falcon_h1", "glm4_moe", "gpt_oss", "llama", "qwen3_moe")],
    *[(name, None) for name in ("deepseek_v3", "gpt_oss", "llama", "recurrent_gemma")],
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lora"), CASES)
def test_one_step_of_training_comes_back_from_convert(tmp_path: Path, name: str, lora: LoraSettings | None) -> None:
    trained = trained_and_converted(architecture(tmp_path, name), tmp_path / "trained", lora)
    assert trained.change > 100 * SAME, "training changed nothing, so the comparison shows nothing"
    assert trained.gap < SAME


@pytest.mark.parametrize("command", [architectures.COMMAND, whole_pipelines.COMMAND])
def test_every_architecture_has_its_row_on_the_page(command: str) -> None:
    rows = architectures.rows_on(architectures.PAGE.read_text(encoding="utf-8"), command)
    assert [row[0] for row in rows] == list(ARCHITECTURES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt_oss", "lfm2"])
def test_the_whole_pipeline_runs_on_models_that_differ_most_from_llama(tmp_path: Path, name: str) -> None:
    """Attention without SDPA and experts in one tensor; convolutions, and a scorer that transformers does not have."""
    assert whole_pipelines.of_pipeline(name, tmp_path)[1] == "works"
