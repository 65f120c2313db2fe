"""Models of every kind come back from training, checkpoint and convert as they were trained, their buffers and experts too."""

from pathlib import Path

import pytest

from benchmarks.architectures import BEGIN, END, PAGE, SAME, trained_and_converted
from rlhf_core.config import LoraSettings
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


def test_every_architecture_has_its_row_on_the_page() -> None:
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    rows = [line.split(" | ")[0].removeprefix("| ") for line in rest.partition(END)[0].strip().splitlines()[2:]]
    assert rows == list(ARCHITECTURES)
