"""The base_model stage: local folders are linked, the chat template is decided once and travels with the model."""

from pathlib import Path

import pytest
from tiny_models import tiny_model

from data_processing.errors import ConfigError
from rlhf_core.batching.chat_templates import read_template
from rlhf_core.batching.rendering import read_rendering
from rlhf_core.batching.templates import PLAIN_TEMPLATE, Renderer
from rlhf_core.events import EventLog
from rlhf_core.models.load import load_tokenizer
from rlhf_core.settings.models import BaseModelConfig
from tasks.base_model import STAGE, fingerprint
from tasks.runtime.contract.context import StageContext

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"


def run(config: BaseModelConfig, tmp_path: Path) -> Path:
    output = tmp_path / "output"
    output.mkdir(parents=True)
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
    output = run(BaseModelConfig(path=str(tiny_model(tmp_path, "llama", tied=True)), chat_template=TEMPLATE), tmp_path)
    assert load_tokenizer(output).chat_template == TEMPLATE


def test_a_bundled_template_and_a_file_are_written_into_the_model_and_belong_to_its_fingerprint(tmp_path: Path) -> None:
    source, own = str(tiny_model(tmp_path, "llama", tied=True)), tmp_path / "own.jinja"
    own.write_text(TEMPLATE)
    bundled = BaseModelConfig(path=source, chat_template="qwen3")
    assert load_tokenizer(run(bundled, tmp_path / "bundled")).chat_template == read_template("qwen3")
    named = BaseModelConfig(path=source, chat_template=str(own))
    assert load_tokenizer(run(named, tmp_path / "named")).chat_template == TEMPLATE
    before = fingerprint(named)
    own.write_text(TEMPLATE + " ")
    assert len({str(seen) for seen in (before, fingerprint(named), fingerprint(bundled))}) == 3


def test_arguments_of_the_template_are_kept_and_those_of_the_settings_win(tmp_path: Path) -> None:
    template = "{% if loud is defined %}{{ loud }}{{ fast }}{% endif %}" + TEMPLATE
    first = {"path": str(tiny_model(tmp_path, "llama", tied=True)), "chat_template": template}
    output = run(BaseModelConfig(**first, chat_template_kwargs={"loud": 1, "fast": "no"}), tmp_path / "first")
    again = run(BaseModelConfig(path=str(output), chat_template_kwargs={"fast": True}), tmp_path / "again")
    renderer = Renderer(load_tokenizer(again))
    assert renderer.tokenizer.decode(renderer.prompt_ids([{"role": "user", "content": "?"}])).startswith("1True<user>")


def test_the_artifact_of_a_template_without_a_date_has_none(tmp_path: Path) -> None:
    source = str(tiny_model(tmp_path, "llama", tied=True))
    assert read_rendering(run(BaseModelConfig(path=source), tmp_path / "undated")).date is None
    with pytest.raises(ConfigError, match=r"template_date=2026-03-01.*asks for no date"):
        run(BaseModelConfig(path=source, template_date="2026-03-01"), tmp_path / "dated")


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
