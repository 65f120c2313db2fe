"""An environment of the library verifiers, run as it is: its prompts are the data, its rubric the reward, its turns the conversation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_processing.schemas import read_table
from tests.flows.test_what_is_refused_before_work import REPOSITORY, command
from tests.rollout.talkative import talkative_model

LIBRARY = REPOSITORY / "tests" / "environments" / "library"
RUN = """
extends: tiny
data: {{procedures: null, test_fraction: 0, validation_fraction: 0, prompts: [{{kind: verifiers, path: desk-games, options: {{kind: echo, rows: 12}}}}]}}
pipeline: {{sft: null, reward_model: null, preference: null, online: {{stage: online, model: base}}}}
model: {{path: {model}}}
online:
  method: grpo
  prompts_per_step: 8
  samples_per_prompt: 4
  environment: {{verifiers: desk-games, options: {{kind: echo, rows: 12}}}}
  rewards: [{{kind: environment}}]
  max_length_tokens: 160
  rollout: {{engine: hf, max_new_tokens: 24, max_logprob_gap: 1.0e-4}}
"""


@pytest.mark.slow
def test_a_run_holds_conversations_in_an_environment_as_it_is(tmp_path: Path) -> None:
    preset = tmp_path / "games.yaml"
    preset.write_text("# Games.\n" + RUN.format(model=talkative_model(tmp_path / "model")))
    done = command(tmp_path / "home", "run", "--preset", str(preset), "--until", "online", PYTHONPATH=f"{REPOSITORY}:{LIBRARY}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    [round_file] = (tmp_path / "home" / "store").glob("*/*/rollouts/step-00001.parquet")
    kept = [json.loads(row["trajectory"]) for row in read_table("rollouts", round_file).to_pylist()]
    assert len(kept) == 32 and not any(each["failure"] for each in kept)
    assert "done" in {each["ended_by"] for each in kept}
    for each in kept:
        said = [message["content"] for message in each["messages"] if message["role"] == "assistant"]
        replies = [message["content"] for message in each["messages"] if message["role"] == "user"]
        assert all(reply == f"{len(text) or 1} characters" for text, reply in zip(said, replies, strict=False))
        if each["ended_by"] == "done":
            assert each["metrics"]["num_turns"] == len(said) == 2
            assert each["rewards"] == [None, float("2" in said[-1]) + 0.5 * (len(said[-1]) < 20)]
