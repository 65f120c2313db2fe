"""The base_model stage: local folders are linked, the chat template is decided once and travels with the model."""

from pathlib import Path

import pytest
from tiny_models import tiny_model

from data_processing.errors import ConfigError
from rlhf_core.batching.templates import PLAIN_TEMPLATE
from rlhf_core.config import BaseModelConfig
from rlhf_core.events import EventLog
from rlhf_core.models.load import load_tokenizer
from tasks.base_model import STAGE, fingerprint
from tasks.runtime.contract.context import StageContext


def run(config: BaseModelConfig, tmp_path: Path) -> Path:
    output = tmp_path / "output"
    output.mkdir()
    events = EventLog(tmp_path / "events.jsonl")
    STAGE.run(StageContext(config, {}, {}, output, tmp_path / "resume", 0, 1, events))
    return output


def test_local_folder_is_linked_not_copied(tmp_path: Path) -> None:
    source = tiny_model(tmp_path, "llama", tied=True)
    output = run(BaseModelConfig(path=str(source)), tmp_path)
    assert (output / "model.safetensors").resolve() == (source / "model.safetensors").resolve()
    assert (output / "chat_template.jinja").is_symlink()


def test_model_without_template_gets_the_plain_one_and_its_source_stays_untouched(tmp_path: Path) -> None:
    source = tiny_model(tmp_path, "gpt2", tied=True)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    output = run(BaseModelConfig(path=str(source)), tmp_path)
    assert load_tokenizer(output).chat_template == PLAIN_TEMPLATE
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_chat_template_of_the_settings_wins(tmp_path: Path) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    output = run(BaseModelConfig(path=str(tiny_model(tmp_path, "llama", tied=True)), chat_template=template), tmp_path)
    assert load_tokenizer(output).chat_template == template


def test_fingerprint_follows_the_content_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNFLOW_HOME", str(tmp_path / "home"))
    source = tiny_model(tmp_path, "llama", tied=True)
    config = BaseModelConfig(path=str(source))
    before = fingerprint(config)
    assert fingerprint(config) == before
    (source / "generation_config.json").write_text("{}")
    assert fingerprint(config) != before


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_incomplete_folder_is_refused_with_what_is_missing(tmp_path: Path, missing: str) -> None:
    source = tiny_model(tmp_path, "llama", tied=True)
    (source / missing).unlink()
    with pytest.raises(ConfigError, match="weights" if missing.startswith("model") else "config.json"):
        run(BaseModelConfig(path=str(source)), tmp_path)


def test_neither_folder_nor_packaged_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="smollm2-135m"):
        run(BaseModelConfig(path=str(tmp_path / "nowhere")), tmp_path)
