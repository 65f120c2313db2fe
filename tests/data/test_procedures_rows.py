"""Generated rows: deterministic, disjoint, optimal against spoiled, and lengths that give nothing away."""

import collections
import json
import random
import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_processing.config import ProceduresConfig
from data_processing.errors import ConfigError
from data_processing.keys import prompt_key, prompt_of
from data_processing.procedures.checker import check
from data_processing.procedures.corruptions import CORRUPTIONS, corrupt
from data_processing.procedures.optimal import Procedure, optimal_procedure, render
from data_processing.procedures.policy import draw_policy, parse_policy
from data_processing.procedures.rows import procedures_rows

DIFFICULTIES = (1, 2, 3)


def drawn_corruption(name: str, difficulty: int, seed: int) -> tuple[str, Procedure, Procedure, int] | None:
    rng = random.Random(seed)
    policy = draw_policy(rng, difficulty)
    optimal = optimal_procedure(policy)
    candidate = corrupt(name, optimal, policy, rng)
    return None if candidate is None else (policy.label(), optimal, *candidate)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(list(CORRUPTIONS)), st.sampled_from(DIFFICULTIES), st.integers(0, 10**9))
def test_every_corruption_applies_and_lowers_the_score(name: str, difficulty: int, seed: int) -> None:
    drawn = drawn_corruption(name, difficulty, seed)
    assert drawn is not None
    label, optimal, spoiled, faulty_step = drawn
    scores = check(label, render(spoiled))
    assert scores.valid == 1.0
    assert scores.score < 1.0
    assert spoiled != optimal
    assert 0 <= faulty_step < len(spoiled)
    assert len(spoiled) - len(optimal) == CORRUPTIONS[name].added_steps


@pytest.mark.parametrize(
    ("name", "lowered"),
    [
        ("wrong_outcome", {"accuracy"}),
        ("swapped_branches", {"accuracy"}),
        ("missing_step", {"accuracy"}),
        ("dangling_target", {"accuracy", "soundness"}),
        ("redundant_step", {"efficiency"}),
        ("invented_attribute", {"accuracy"}),
        ("cycle", {"accuracy", "soundness"}),
    ],
)
def test_each_corruption_spoils_the_part_it_is_named_for(name: str, lowered: set[str]) -> None:
    for difficulty in DIFFICULTIES:
        for seed in range(20):
            drawn = drawn_corruption(name, difficulty, seed)
            assert drawn is not None
            scores = check(drawn[0], render(drawn[2]))
            assert not [part for part in lowered if getattr(scores, part) == 1.0]


@pytest.mark.parametrize("name", ["wrong_outcome", "swapped_branches", "dangling_target", "invented_attribute", "cycle"])
def test_the_faulty_step_is_the_one_line_that_differs(name: str) -> None:
    for seed in range(30):
        drawn = drawn_corruption(name, 2, seed)
        assert drawn is not None
        _, optimal, spoiled, faulty_step = drawn
        assert [i for i, (a, b) in enumerate(zip(optimal, spoiled, strict=True)) if a != b] == [faulty_step]


def test_the_faulty_step_of_a_missing_step_is_where_the_texts_part_and_of_a_redundant_one_the_repetition() -> None:
    for seed in range(30):
        drawn = drawn_corruption("missing_step", 2, seed)
        assert drawn is not None
        _, optimal, spoiled, faulty_step = drawn
        assert optimal[:faulty_step] == spoiled[:faulty_step]
        assert optimal[faulty_step] != spoiled[faulty_step]
        drawn = drawn_corruption("redundant_step", 2, seed)
        assert drawn is not None
        _, _, spoiled, faulty_step = drawn
        assert spoiled[faulty_step].clause in [step.clause for step in spoiled[:faulty_step]]


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_length_does_not_tell_chosen_from_rejected(difficulty: int) -> None:
    """Neither within a pair nor across pairs, in characters and in steps."""
    config = ProceduresConfig(difficulty=difficulty, sft_rows=0, preference_pairs=1400, prompt_rows=0)
    pairs = procedures_rows(config, seed=1)["preference", "train"]
    texts = [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in pairs]
    differences = [len(rejected) - len(chosen) for chosen, rejected in texts]
    longer, shorter = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    # With no bias the share of longer ones among those that differ has a standard deviation of 0.5 / sqrt(n) = 0.019.
    assert abs(longer / (longer + shorter) - 0.5) < 0.065
    assert abs(statistics.mean(differences)) < 0.02 * statistics.mean(len(chosen) for chosen, _ in texts)
    chosen_steps, rejected_steps = (collections.Counter(text[side].count("\n") for text in texts) for side in (0, 1))
    best_guess = sum(abs(chosen_steps[n] - rejected_steps[n]) for n in chosen_steps | rejected_steps) / (2 * len(pairs))
    assert best_guess < 0.07  # total variation distance of the numbers of steps


def test_corruptions_come_equally_often() -> None:
    pairs = procedures_rows(ProceduresConfig(preference_pairs=70), seed=0)["preference", "train"]
    names = collections.Counter(json.loads(pair["detail"])["corruption"] for pair in pairs)
    assert names == dict.fromkeys(CORRUPTIONS, 10)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_rows_hold_prompt_and_optimal_procedure_and_labels_fit(difficulty: int) -> None:
    rows = procedures_rows(ProceduresConfig(difficulty=difficulty, sft_rows=5, preference_pairs=14, prompt_rows=5), seed=0)
    assert {key: len(value) for key, value in rows.items()} == {
        (table, split): {"train": train, "validation": 32, "test": 64}[split]
        for table, train in (("sft", 5), ("preference", 14), ("prompts", 5))
        for split in ("train", "validation", "test")
    }
    for row in rows["prompts", "test"]:
        assert check(row["label"], "A. The product is toxic? If YES, APPROVE. If NO, APPROVE.").valid == 1
    for row in rows["sft", "train"]:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    config = ProceduresConfig(sft_rows=20, preference_pairs=20, prompt_rows=20)
    assert procedures_rows(config, seed=3) == procedures_rows(config, seed=3)
    prompts = [{prompt_key(prompt_of(row)) for row in procedures_rows(config, seed)["prompts", "train"]} for seed in (3, 4)]
    assert not prompts[0] & prompts[1]


def test_held_out_rows_stay_the_same_when_the_training_sizes_change() -> None:
    small = procedures_rows(ProceduresConfig(sft_rows=5, preference_pairs=5, prompt_rows=5), seed=0)
    large = procedures_rows(ProceduresConfig(sft_rows=50, preference_pairs=80, prompt_rows=50, noisy_label_fraction=0.2), seed=0)
    for table in ("sft", "preference", "prompts"):
        for split in ("validation", "test"):
            assert small[table, split] == large[table, split]


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_no_policy_stands_in_two_rows_whatever_table_or_split(difficulty: int) -> None:
    rows = procedures_rows(ProceduresConfig(difficulty=difficulty, sft_rows=100, preference_pairs=100, prompt_rows=100), seed=0)
    answers = [optimal_answer(row) for part in rows.values() for row in part]
    assert len(answers) == 300 + 3 * (32 + 64)
    assert len(set(answers)) == len(answers)


def optimal_answer(row: dict[str, Any]) -> str:
    if "label" in row:
        return render(optimal_procedure(parse_policy(row["label"])))
    return str((row["messages"][1] if "messages" in row else row["chosen"][0])["content"])


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_noisy_labels_flip_exactly_their_share_of_training_pairs_and_say_so(fraction: float) -> None:
    config = ProceduresConfig(preference_pairs=80, noisy_label_fraction=fraction)
    rows = procedures_rows(config, seed=0)
    clean = procedures_rows(config.model_copy(update={"noisy_label_fraction": 0.0}), seed=0)
    flipped = 0
    for pair, original in zip(rows["preference", "train"], clean["preference", "train"], strict=True):
        is_flipped = json.loads(pair["detail"])["flipped"]
        sides = ("rejected", "chosen") if is_flipped else ("chosen", "rejected")
        assert (pair[sides[0]], pair[sides[1]]) == (original["chosen"], original["rejected"])
        flipped += is_flipped
    assert flipped == round(fraction * 80)
    assert not any(json.loads(pair["detail"])["flipped"] for pair in rows["preference", "test"])


def test_answers_of_difficulty_two_are_short() -> None:
    rows = procedures_rows(ProceduresConfig(sft_rows=200), seed=0)["sft", "train"]
    words = [len(row["messages"][1]["content"].replace("?", " ?").replace(".", " .").replace(",", " ,").split()) for row in rows]
    assert statistics.mean(words) < 90
    assert max(len(row["messages"][0]["content"].split()) for row in rows) < 90


def test_more_rows_than_there_are_policies_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_processing.procedures.policy.ATTRIBUTES", {"magnet": "", "toxic": "", "abroad": ""})
    monkeypatch.setattr("data_processing.procedures.policy.RULE_COUNTS", {1: {1: 1.0}})
    with pytest.raises(ConfigError, match="lower the row counts"):
        procedures_rows(ProceduresConfig(difficulty=1, sft_rows=100, preference_pairs=0, test_rows=0, validation_rows=0), seed=0)
