"""A reward model scores sampled ids as AutoModelForSequenceClassification does, one response at a time or packed."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from data_processing.errors import ConfigError, DivergedError
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.reward_model import RewardModelScorer
from rlhf_core.settings.training import Packing
from tests.tiny_models import Architecture, tiny_model

RESPONSES = [
    ScoredResponse("a", [], None, [5, 6, 7], [8, 9, 10, 2], "x"),
    ScoredResponse("b", [], None, [11], [12, 13], "y"),
    ScoredResponse("c", [], None, [14, 15, 16, 17], [18], "z"),
]


def reward_folder(tmp_path: Path, base: Path) -> Path:
    folder = tmp_path / "reward"
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize(("packing", "tokens"), [("on", 64), ("off", 64), ("auto", 16)])
def test_scores_are_those_of_the_saved_model(tmp_path: Path, arch: Architecture, packing: str, tokens: int) -> None:
    base = tiny_model(tmp_path, arch)
    folder = reward_folder(tmp_path, base)
    scorer = RewardModelScorer(folder, base, dtype="fp32", attention="sdpa", micro_batch_tokens=tokens, packing=Packing(packing))
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    # Where pad is eos it would read the score before the eos that ends a response.
    model.config.pad_token_id = None
    with torch.no_grad():
        expected = [float(model(torch.tensor([[*r.prompt_ids, *r.response_ids]])).logits) for r in RESPONSES]
    assert scorer.score(RESPONSES) == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 4) for score in expected}) == 3


def test_a_score_that_is_not_finite_is_no_fault_of_a_response(tmp_path: Path) -> None:
    base = tiny_model(tmp_path)
    folder = reward_folder(tmp_path, base)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    torch.nn.init.constant_(model.score.weight, torch.nan)
    model.save_pretrained(folder)
    scorer = RewardModelScorer(folder, base, dtype="fp32", attention="sdpa", micro_batch_tokens=64, packing=Packing.auto)
    with pytest.raises(DivergedError, match="3 of 3 scores are not finite, the first is reward=nan: the reward model's weights"):
        scorer.score(RESPONSES)


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    base, other = tiny_model(tmp_path, "llama"), tiny_model(tmp_path, "gpt2")
    with pytest.raises(ConfigError, match="different vocabularies"):
        RewardModelScorer(
            reward_folder(tmp_path, other), base, dtype="fp32", attention="sdpa", micro_batch_tokens=64, packing=Packing.auto
        )
