"""A process reward model as a reward: steps are found in sampled tokens as in its training rows, and earn what it says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from data_processing.errors import ConfigError
from flows.settings.layers import validate
from rlhf_core.batching.templates import Renderer
from rlhf_core.models.load import load_tokenizer
from rlhf_core.recipes.examples import steps
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.compose import ComposedReward
from rlhf_core.rewards.process_reward_model import ProcessScorer, step_ends
from rlhf_core.rewards.weighing import Weighing
from rlhf_core.settings.training import Packing
from tests.recipes.small_jobs import step_row
from tests.rewards.test_reward_model_scorer import reward_folder
from tests.tiny_models import ARCHITECTURES, Architecture, tiny_model, tiny_tokenizer


def sampled(renderer: Renderer, number: int, separator: str) -> tuple[ScoredResponse, list[int]]:
    """The answer of a stepwise row as a sampler would give it, and where its steps end by the rules of training."""
    row = step_row(number)
    [tokens] = steps(renderer, row, separator).rows
    said = separator.join(step["content"] for step in row["steps"])
    first = renderer.prompt_and_response(row["prompt"], [{"role": "assistant", "content": said}]).prompt_length
    ends = [i - first for i, is_end in enumerate(tokens.is_target) if is_end]
    return ScoredResponse(row["id"], row["prompt"], None, tokens.ids[:first], tokens.ids[first:], said), ends


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("separator", ["\n\n", "\n"])
def test_steps_end_where_training_has_them_end(arch: Architecture, separator: str) -> None:
    renderer = Renderer(tiny_tokenizer(arch))
    for number in range(4):
        response, ends = sampled(renderer, number, separator)
        assert step_ends(renderer.tokenizer, response.response_ids, separator) == ends
        assert len(ends) == 1 + number


@pytest.mark.parametrize(
    ("text", "expected"),
    [("yes", 1), ("yes\n\nno", 2), ("\n\nyes\n\n", 1), ("yes\n\n\n\nno", 2), ("yes\n\n \n\nno\n\n", 2), ("", 1)],
)
def test_separators_without_a_step_end_none(text: str, expected: int) -> None:
    tokenizer = tiny_tokenizer("llama")
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    ends = step_ends(tokenizer, ids, "\n\n")
    assert len(ends) == expected
    assert ends[-1] == len(ids) - 1


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_a_step_earns_what_the_model_says_at_its_end(packing: str, tmp_path: Path) -> None:
    base = tiny_model(tmp_path, "llama")
    folder = reward_folder(tmp_path, base)
    renderer = Renderer(load_tokenizer(base))
    responses, ends = zip(*(sampled(renderer, number, "\n\n") for number in (0, 1, 3, 3)), strict=True)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    chances = []
    for response, own in zip(responses, ends, strict=True):
        hidden = model.base_model(torch.tensor([[*response.prompt_ids, *response.response_ids]])).last_hidden_state[0]
        places = torch.tensor([len(response.prompt_ids) + end for end in own])
        chances.append(model.score(hidden)[places, 0].sigmoid().tolist())

    def scorer(of_steps: Literal["each", "min", "mean", "last"]) -> ProcessScorer:
        return ProcessScorer(
            folder,
            base,
            of_steps=of_steps,
            separator="\n\n",
            dtype="fp32",
            attention="sdpa",
            micro_batch_tokens=64,
            packing=Packing(packing),
        )

    expected = {
        "min": [min(p) for p in chances],
        "mean": [sum(p) / len(p) for p in chances],
        "last": [p[-1] for p in chances],
    }
    for of_steps in ("min", "mean", "last"):
        assert scorer(of_steps).score(responses).rewards == pytest.approx(expected[of_steps], abs=1e-5)
    found = ComposedReward([(scorer("each"), Weighing(3.0))]).score(responses)
    assert found.total == [0.0] * 4
    for tokens, response, own, p in zip(found.tokens, responses, ends, chances, strict=True):
        assert tokens is not None and len(tokens) == len(response.response_ids)
        assert [tokens[end] for end in own] == pytest.approx([3 * (2 * value - 1) for value in p], abs=1e-4)
        assert sum(value != 0 for value in tokens) == len(own)
    assert found.metrics["process_reward_model/steps"] == [1, 2, 4, 4]
    assert found.metrics["process_reward_model/least"] == pytest.approx(expected["min"], abs=1e-5)


def test_settings_of_steps_belong_to_it_alone() -> None:
    with pytest.raises(ConfigError, match=r"online\.rewards\[0\]\.of_steps: unknown field; allowed are kind, weight"):
        validate({"online": {"rewards": [{"kind": "reward_model", "of_steps": "min"}]}})
