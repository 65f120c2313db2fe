"""A template that asks for today's date gets the model's own, on whatever day a stage runs."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import chat_template_utils

from rlhf_core.batching import rendering
from rlhf_core.batching.templates import Renderer
from rlhf_core.engine.convert import convert_checkpoint
from rlhf_core.events import EventLog
from rlhf_core.models.load import load_tokenizer
from rlhf_core.recipes import prompts
from rlhf_core.recipes.examples import digest, pair, read_examples
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.recipes.preference import train_preference
from rlhf_core.recipes.prompts import Limits, read_prompts
from rlhf_core.recipes.sft import train_sft
from rlhf_core.settings.models import BaseModelConfig, ConvertConfig
from tasks.base_model import STAGE
from tasks.runtime.contract.context import StageContext
from tests.online.runs import online_job, prompts_folder
from tests.recipes.small_jobs import job, preference_config, sft_config, weights
from tests.recipes.test_resume_is_exact import crash
from tests.tiny_models import CHATML, tiny_model

pytestmark = pytest.mark.seconds

QUESTION = [{"role": "user", "content": "what day is it?"}]
Clock = Callable[[int], None]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Sets this machine's clock to a day of March 2026, for alignflow and for transformers."""

    def set_to(day: int) -> None:
        class Day(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return cls(2026, 3, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Day)
        monkeypatch.setattr(rendering, "today", lambda: datetime.date(2026, 3, day), raising=False)

    set_to(1)
    return set_to


@pytest.fixture
def base(clock: Clock, tmp_path: Path) -> Path:
    """The base_model artifact of a model with a dated template, made on the first."""
    source = tiny_model(tmp_path, "llama")
    (source / "chat_template.jinja").write_text("{{ 'Today is ' + strftime_now('%d %B %Y') + '.\n' }}" + CHATML)
    return made(tmp_path / "base", path=str(source))


def made(output: Path, **settings: Any) -> Path:
    output.mkdir()
    context = StageContext(BaseModelConfig(**settings), {}, {}, output, output, 0, 1, EventLog(output.parent / "events.jsonl"))
    STAGE.run(context)
    return output


def prompt(folder: Path) -> str:
    renderer = Renderer(load_tokenizer(folder))
    return str(renderer.tokenizer.decode(renderer.prompt_ids(QUESTION)))


@pytest.mark.parametrize(
    ("train", "config"), [(train_sft, sft_config), (train_preference, preference_config)], ids=["sft", "dpo"]
)
def test_a_run_goes_on_on_another_day_and_ends_with_the_same_weights(
    train: Callable[[TrainingJob[Any]], None], config: Any, base: Path, data: Path, clock: Clock, tmp_path: Path
) -> None:
    whole, resumed = (job(config(checkpoint_every_steps=1, max_steps=4), base, data, tmp_path / name) for name in ("w", "r"))
    crash(train, resumed, at=3)
    clock(2)
    train(resumed)
    train(whole)
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(resumed).items())
    assert len(list(resumed.resume.glob("reference_logps-*"))) == (config is preference_config)


def test_rows_have_the_same_digest_on_every_day(base: Path, data: Path, clock: Clock) -> None:
    digests = set()
    for day in (1, 2):
        clock(day)
        render = partial(pair, Renderer(load_tokenizer(base)))
        digests.add(digest(read_examples(data, "preference", "train", render)[0]))
    assert len(digests) == 1


def test_the_date_travels_from_the_base_model_to_what_is_trained_and_what_starts_from_that(
    base: Path, data: Path, clock: Clock, tmp_path: Path
) -> None:
    run = job(sft_config(max_steps=1), base, data, tmp_path)
    train_sft(run)
    clock(2)
    convert_checkpoint(run.output, base, tmp_path / "converted", ConvertConfig(), {})
    again = made(tmp_path / "again", path=str(tmp_path / "converted"))
    first = prompt(base)
    assert first.startswith("Today is 01 March 2026.")
    assert {prompt(folder) for folder in (run.output, tmp_path / "converted", again)} == {first}


def test_the_date_of_the_settings_wins_and_is_kept(base: Path, clock: Clock, tmp_path: Path) -> None:
    dated = made(tmp_path / "dated", path=str(base), template_date="2024-07-26")
    clock(2)
    assert prompt(dated).startswith("Today is 26 July 2024.")
    assert prompt(base).startswith("Today is 01 March 2026."), "the source's file was written through its link"


def test_a_folder_without_a_date_sees_the_day(base: Path, clock: Clock) -> None:
    (base / rendering.RENDERING_NAME).unlink()
    before = prompt(base)
    clock(2)
    assert prompt(base) == before.replace("01 March", "02 March")


def test_prompts_of_an_online_run_are_those_of_the_day_it_began(base: Path, clock: Clock, tmp_path: Path) -> None:
    digests = set()
    for day in (1, 2):
        clock(day)
        run = online_job(tmp_path / str(day), base, prompts_folder(tmp_path / "data"))
        renderer = Renderer(load_tokenizer(run.model))
        digests.add(prompts.digest(read_prompts(run.data, Limits.of(run.config, run.config.rollout), run.events, renderer)))
    assert len(digests) == 1
