"""Tokens that are hidden: a row without them is read as the whole row with attention 0 on them, or that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from data_processing.errors import ConfigError
from rlhf_core.batching.rows import TokenRow
from rlhf_core.models.hiding import can_hide
from rlhf_core.models.load import load_scorer
from rlhf_core.models.modules import ScoreModule
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.reward_model import RewardModelScorer
from rlhf_core.settings.training import Packing
from tests.architectures import architecture
from tests.rewards.test_reward_model_scorer import reward_folder
from tests.tiny_models import ARCHITECTURES, tiny_model

PROMPT, RESPONSE = [5, 9, 31, 7], [40, 41, 42, 43, 44, 45, 46, 47]
CPU = torch.device("cpu")


def scorer(folder: Path, **settings: Any) -> RewardModelScorer:
    given = {"dtype": "fp32", "attention": "auto", "micro_batch_tokens": 64, "packing": Packing.auto, **settings}
    return RewardModelScorer(folder, folder, **given)


def hiding(hidden: tuple[int, int] | None) -> ScoredResponse:
    return ScoredResponse("p", [], None, PROMPT, RESPONSE, "", hidden=hidden)


def with_attention_0(folder: Path, hidden: tuple[int, int]) -> float:
    """The score by transformers alone, of the whole row."""
    model = load_scorer(folder, dtype="fp32", attention="eager", new_head=False)
    ids = torch.tensor([PROMPT + RESPONSE])
    mask = torch.ones_like(ids)
    mask[0, len(PROMPT) + hidden[0] : len(PROMPT) + hidden[1]] = 0
    with torch.no_grad():
        states = model.base_model(
            input_ids=ids, attention_mask=mask, position_ids=torch.arange(ids.shape[1])[None], use_cache=False
        ).last_hidden_state
        value: float = model.score(states[0, -1]).item()
    return value


@pytest.mark.parametrize("packing", [Packing.on, Packing.off])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_hidden_unit_is_as_one_with_attention_0(tmp_path: Path, arch: Any, packing: Packing) -> None:
    folder = reward_folder(tmp_path, tiny_model(tmp_path, arch))
    spans = [(0, 2), (2, 5), (5, 7)]
    found = scorer(folder, packing=packing).score([hiding(None), *map(hiding, spans)])
    assert found[1:] == pytest.approx([with_attention_0(folder, span) for span in spans], abs=1e-4)
    assert len({round(value, 5) for value in found}) == 4


def test_eager_attention_hides_too(tmp_path: Path) -> None:
    folder = reward_folder(tmp_path, tiny_model(tmp_path))
    [found] = scorer(folder, attention="eager").score([hiding((2, 5))])
    assert found == pytest.approx(with_attention_0(folder, (2, 5)), abs=1e-4)


@pytest.mark.parametrize("name", ["falcon", "bamba", "lfm2"])
def test_a_model_that_knows_better_is_refused(tmp_path: Path, name: str) -> None:
    module = ScoreModule(load_scorer(architecture(tmp_path, name), dtype="fp32", attention="auto", new_head=True)).eval()
    assert not can_hide(module, CPU)


def test_where_nothing_can_be_hidden_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_core.rewards.reward_model.can_hide", lambda module, on: False)
    with pytest.raises(ConfigError, match="use mask or delete"):
        scorer(reward_folder(tmp_path, tiny_model(tmp_path))).score([hiding((0, 2))])


def test_a_row_that_hides_tokens_keeps_the_places_of_the_others() -> None:
    row = TokenRow.from_prompt_response([1, 2], [3, 4, 5]).hiding(2, 4)
    assert (row.ids, row.is_target, row.positions) == ([1, 2, 5], [False, False, True], [0, 1, 4])


def test_bf16_is_no_reason_to_refuse(tmp_path: Path) -> None:
    module = ScoreModule(load_scorer(tiny_model(tmp_path), dtype="bf16", attention="auto", new_head=True)).eval()
    assert can_hide(module, CPU)
