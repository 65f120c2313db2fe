"""DRCA on scripted rewards: what a unit is worth, what is kept, what cannot be cut or scored, and in what order it is asked."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from rlhf_core.credit.base import Credited, Round
from rlhf_core.credit.drca import Drca
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.compose import Rewards
from rlhf_core.settings.credit import DrcaCredit
from tests.batching.template_cases import byte_level

END = "<|im_end|>"
TOKENIZER = byte_level(["<s>", "<|im_start|>", END], bos=None, eos=END)
EOS = int(TOKENIZER.convert_tokens_to_ids(END))
Worth = Callable[[ScoredResponse], float | None]


def response(text: str, number: int = 0, *, ends: bool = True) -> ScoredResponse:
    ids = TOKENIZER.encode(text, add_special_tokens=False) + ([EOS] if ends else [])
    return ScoredResponse(f"p{number}", [], None, [1, 2, 3], ids, text)


def credited(
    responses: Sequence[ScoredResponse], worth: Worth, *, clip: float | None = None, entropy: Any = None, **settings: Any
) -> tuple[Credited, list[ScoredResponse]]:
    asked: list[ScoredResponse] = []

    def worth_of(others: Sequence[ScoredResponse]) -> list[float | None]:
        asked.extend(others)
        return [worth(other) for other in others]

    rewards = Rewards([worth(own) for own in responses], {})
    ends = [EOS if own.response_ids[-1] == EOS else None for own in responses]
    given = Round(responses, rewards, ends, [EOS], TOKENIZER, entropy, worth_of)
    return Drca(DrcaCredit(**settings), clip)(given), asked


def good(own: ScoredResponse) -> float:
    return float("good" in own.text)


@pytest.mark.parametrize(("mode", "wanted"), [("mask", [0, 1, 0]), ("delete", [0, 1, 0]), ("mask_truncate", [1, 1, 0])])
def test_the_unit_with_the_word_earns_the_difference(mode: Any, wanted: list[float]) -> None:
    found, _ = credited([response("A. so\nB. good one\nC. end")], good, counterfactual=mode)
    assert [unit.credit for unit in found.units[0]] == wanted
    tokens = found.tokens[0]
    assert tokens is not None
    for unit in found.units[0]:
        assert sum(tokens[unit.start : unit.end]) == pytest.approx(0.8 * unit.credit)
    assert found.total[0] == pytest.approx(0.2)


def test_what_is_earned_sums_to_the_shares() -> None:
    texts = ["A. good\nB. x", "1. so\n2. so\n3. good", "A. only"]
    found, _ = credited([response(text, n) for n, text in enumerate(texts)], lambda own: len(own.text) / 10, beta=0.6)
    for i, text in enumerate(texts):
        differences = [unit.credit for unit in found.units[i]]
        earned = math.fsum(found.tokens[i] or ()) + (found.total[i] or 0.0)
        assert earned == pytest.approx(0.6 * sum(differences) + 0.4 * len(text) / 10)


def test_without_units_or_beta_the_reward_stays_whole() -> None:
    mixed = [response("no label"), response("A. good", 1), response("", 2)]
    found, asked = credited(mixed, lambda own: 0.5 + good(own))
    assert found.total[0] == 0.5 and found.tokens[0] is None and found.units[0] == []
    assert found.total[2] == 0.5 and found.tokens[2] is None
    assert found.metrics["fallback_share"] == pytest.approx(2 / 3) and len(asked) == 1
    found, asked = credited(mixed, good, beta=0.0)
    assert list(found.total) == [0.0, 1.0, 0.0] and not any(found.tokens) and asked == []


def test_all_of_it_to_the_units_leaves_none_at_the_end() -> None:
    found, _ = credited([response("A. good\nB. x")], lambda own: 2 * good(own), beta=1.0, counterfactual="mask")
    assert found.total[0] == 0.0 and found.tokens[0] is not None and found.tokens[0][-1] == 0.0
    assert math.fsum(found.tokens[0]) == pytest.approx(2.0)


def test_what_has_no_reward_or_cannot_be_scored_without_a_unit_is_left() -> None:
    def worth(own: ScoredResponse) -> float | None:
        return None if own.prompt_id == "p1" or (own.prompt_id == "p2" and "bad" not in own.text) else 1.0

    found, asked = credited([response("A. bad", n) for n in range(3)], worth)
    assert found.total[1] is None and {own.prompt_id for own in asked} == {"p0", "p2"}
    assert found.total[2] == 1.0 and found.units[2] == [] and found.tokens[2] is None
    assert found.total[0] == pytest.approx(0.2)


def test_a_response_that_was_cut_has_its_last_token_in_a_unit() -> None:
    own = response("A. so\nB. good", ends=False)
    found, asked = credited([own], good)
    assert found.units[0][-1].end == len(own.response_ids)
    assert (
        all(other.response_ids[-1] == EOS for other in asked)
        and max(len(o.response_ids) for o in asked) == len(own.response_ids) + 1
    )


def test_token_0_is_a_token_as_any_other() -> None:
    zero = TOKENIZER.decode([0])
    assert zero in ("", "<s>", "!")
    own = ScoredResponse("p", [], None, [1], [*TOKENIZER.encode("A. "), 0, *TOKENIZER.encode("good\nB. x"), EOS], "A. good\nB. x")
    found, _ = credited([own], good, counterfactual="mask")
    first, second = found.units[0]
    assert first.start == 0 and 0 in own.response_ids[first.start : first.end] and second.end == len(own.response_ids) - 1


def test_differences_are_of_bounded_rewards() -> None:
    found, _ = credited([response("A. good")], lambda own: 100 * good(own), clip=10.0, counterfactual="mask")
    assert found.units[0][0].credit == 10.0 and found.total[0] == pytest.approx(92.0)


def test_equal_counterfactuals_are_asked_for_once_and_order_changes_nothing() -> None:
    own = [response("A. good\nB. x", n % 2) for n in range(6)]
    found, asked = credited(own, good, counterfactual="mask")
    assert len(asked) == 4 and len({(o.prompt_id, tuple(o.response_ids)) for o in asked}) == 4
    assert [o.prompt_id for o in asked] == sorted(o.prompt_id for o in asked)
    shuffled = list(range(6))
    random.Random(1).shuffle(shuffled)
    again, _ = credited([own[i] for i in shuffled], good, counterfactual="mask")
    assert [again.tokens[place] for place in range(6)] == [found.tokens[i] for i in shuffled]


@pytest.mark.parametrize(("mode", "n_units", "first"), [("exclude", 1, False), ("unit", 2, True), ("include", 1, False)])
def test_thinking_is_left_out_a_unit_or_part(mode: Any, n_units: int, first: bool) -> None:
    own = response("<think>A. hm good</think>\n\nB. good")
    found, _ = credited([own], good, think_mode=mode, counterfactual="mask")
    assert len(found.units[0]) == n_units and (found.units[0][0].start == 0) is first


def test_units_of_entropy_are_those_of_the_tokens() -> None:
    own = response("some good words here")
    entropy = torch.zeros(1, len(own.response_ids))
    entropy[0, 3] = 2.0
    found, _ = credited([own], good, unit_extraction="entropy", entropy=entropy, counterfactual="mask")
    assert [(unit.start, unit.end) for unit in found.units[0]] == [(0, 3), (3, len(own.response_ids) - 1)]
