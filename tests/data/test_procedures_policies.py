"""Policies decide as they read, and the optimal procedure is truly optimal."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_processing.errors import DataError
from data_processing.procedures.checker import check
from data_processing.procedures.optimal import optimal_procedure, optimal_questions, render, step_label
from data_processing.procedures.policy import MAX_ATTRIBUTES, Policy, Rule, draw_policy, parse_policy, prompt_text
from data_processing.procedures.vocabulary import ATTRIBUTES, CATEGORIES, OUTCOMES


def policies(difficulty: st.SearchStrategy[int]) -> st.SearchStrategy[Policy]:
    return st.builds(lambda seed, level: draw_policy(random.Random(seed), level), st.integers(0, 10**9), difficulty)


any_outcome = st.sampled_from(OUTCOMES)
# A few attributes that rules share: policies the generator never draws, with rules that never apply among them.
few = st.sampled_from(list(ATTRIBUTES)[:4])
any_rule = st.builds(Rule, when=st.lists(few, min_size=1, max_size=2).map(tuple), unless=st.none() | few, outcome=any_outcome)
any_policy = st.builds(
    Policy,
    category=st.sampled_from(CATEGORIES),
    rules=st.lists(any_rule, min_size=1, max_size=4).map(tuple),
    default=any_outcome,
)


def least_questions(policy: Policy, known: dict[str, bool]) -> float:
    """Expected questions of the best decision tree, by trying every question at every partial assignment."""
    open_names = [name for name in policy.attributes if name not in known]
    combinations = [
        {**known, **dict(zip(open_names, [bool(row >> i & 1) for i in range(len(open_names))], strict=True))}
        for row in range(2 ** len(open_names))
    ]
    if len({policy.decide(holds) for holds in combinations}) == 1:
        return 0.0
    return 1 + min(sum(least_questions(policy, {**known, name: answer}) for answer in (True, False)) / 2 for name in open_names)


def test_vocabulary_is_large_unambiguous_and_reads_well() -> None:
    assert len(ATTRIBUTES) >= 60
    assert len(set(ATTRIBUTES.values())) == len(ATTRIBUTES)
    assert len(set(CATEGORIES)) == len(CATEGORIES) >= 60
    assert not [category for category in CATEGORIES if category[0] in "aeiou"]
    assert not [clause for clause in ATTRIBUTES.values() if "?" in clause or clause != clause.strip()]


@settings(deadline=None, max_examples=60)
@given(any_policy | policies(st.sampled_from((1, 2))))
def test_optimal_procedure_asks_as_few_questions_as_exhaustive_search_finds(policy: Policy) -> None:
    expected = max(1.0, least_questions(policy, {}))
    assert optimal_questions(policy) / len(policy.decisions) == expected


@settings(deadline=None)
@given(any_policy | policies(st.sampled_from((1, 2, 3))))
def test_optimal_procedure_scores_exactly_one_in_every_part(policy: Policy) -> None:
    text = render(optimal_procedure(policy))
    scores = check(policy.label(), text)
    assert (scores.valid, scores.accuracy, scores.soundness, scores.efficiency, scores.score) == (1, 1, 1, 1, 1)


def test_optimal_procedure_of_a_plain_policy_follows_its_priorities() -> None:
    policy = Policy(
        category="drone",
        rules=(Rule(when=("magnet",), outcome="RESTRICT"), Rule(when=("abroad",), outcome="ESCALATE")),
        default="APPROVE",
    )
    assert render(optimal_procedure(policy)) == (
        "A. The product contains a strong magnet? If YES, RESTRICT. If NO, go to Step B.\n"
        "B. The product ships from abroad? If YES, ESCALATE. If NO, APPROVE."
    )


def test_optimal_procedure_shares_the_step_that_two_paths_lead_to() -> None:
    policy = Policy(
        category="drone",
        rules=(Rule(when=("magnet", "abroad"), outcome="RESTRICT"), Rule(when=("toxic",), outcome="ESCALATE")),
        default="APPROVE",
    )
    text = render(optimal_procedure(policy))
    assert text.count("\n") == 2
    assert text.count("go to Step C") == 2


def test_a_better_order_than_the_stated_one_is_found() -> None:
    """Asking the single attribute first decides half of all products at once."""
    policy = Policy(
        category="drone",
        rules=(Rule(when=("magnet", "abroad"), outcome="RESTRICT"), Rule(when=("toxic",), outcome="RESTRICT")),
        default="APPROVE",
    )
    assert optimal_procedure(policy)[0].clause == "is toxic"


@settings(deadline=None)
@given(policies(st.sampled_from((1, 2, 3))))
def test_a_policy_survives_its_label(policy: Policy) -> None:
    again = parse_policy(policy.label())
    assert again == policy
    assert again.decisions == policy.decisions


@pytest.mark.parametrize(
    "label",
    [
        "",
        "no JSON",
        "{}",
        "[]",
        '{"category":"drone","rules":[],"default":"APPROVE"}',
        '{"category":"drone","rules":[{"when":["wings"],"outcome":"APPROVE"}],"default":"APPROVE"}',
        '{"category":"drone","rules":[{"when":["magnet"],"outcome":"BUY"}],"default":"APPROVE"}',
    ],
)
def test_a_label_that_is_no_policy_is_an_error_that_shows_it(label: str) -> None:
    with pytest.raises(DataError, match="is not a policy"):
        parse_policy(label)


def test_a_policy_with_too_many_attributes_to_execute_is_refused() -> None:
    rules = [{"when": [name], "outcome": "APPROVE"} for name in list(ATTRIBUTES)[: MAX_ATTRIBUTES + 1]]
    with pytest.raises(ValueError, match=f"at most {MAX_ATTRIBUTES}"):
        Policy.model_validate({"category": "drone", "rules": rules, "default": "RESTRICT"})


def test_exceptions_and_two_attributes_decide_as_they_read() -> None:
    policy = Policy(
        category="drone",
        rules=(
            Rule(when=("magnet",), unless="listed_maker", outcome="RESTRICT"),
            Rule(when=("abroad", "toxic"), outcome="ESCALATE"),
        ),
        default="APPROVE",
    )
    nothing = dict.fromkeys(policy.attributes, False)
    assert policy.decide({**nothing, "magnet": True}) == "RESTRICT"
    assert policy.decide({**nothing, "magnet": True, "listed_maker": True}) == "APPROVE"
    assert policy.decide({**nothing, "abroad": True}) == "APPROVE"
    assert policy.decide({**nothing, "abroad": True, "toxic": True, "magnet": True, "listed_maker": True}) == "ESCALATE"
    prompt = prompt_text(policy, random.Random(0), shuffled=False)
    assert prompt.split("\n") == [
        "Write the review procedure for a drone.",
        "If it contains a strong magnet, restrict it, unless it comes from a listed maker.",
        "If it ships from abroad and is toxic, escalate it.",
        "Otherwise, approve it.",
    ]


def test_shuffled_prompts_state_the_priority_of_every_rule_in_words() -> None:
    ordinals = ("First", "Second", "Third", "Fourth", "Fifth")
    rng, shuffled = random.Random(0), 0
    for _ in range(100):
        policy = draw_policy(rng, difficulty=2)
        _, *lines, last = prompt_text(policy, rng, shuffled=True).split("\n")
        assert last == f"Otherwise, {policy.default.lower()} it."
        by_rule = []
        for rule in policy.rules:
            (position,) = [i for i, line in enumerate(lines) if ATTRIBUTES[rule.when[0]] in line]
            by_rule.append(position)
        for rank, position in enumerate(by_rule):
            word = lines[position].split(",")[0].split(":")[0]
            assert word in (ordinals[rank], f"Priority {('one', 'two', 'three', 'four', 'five')[rank]}")
        shuffled += by_rule != sorted(by_rule)
    assert shuffled > 40


@pytest.mark.parametrize(("difficulty", "most_rules"), [(1, 3), (2, 5), (3, 5)])
def test_difficulty_bounds_rules_and_brings_in_exceptions_and_pairs(difficulty: int, most_rules: int) -> None:
    drawn = [draw_policy(random.Random(seed), difficulty) for seed in range(200)]
    assert max(len(p.rules) for p in drawn) <= most_rules
    assert all(len(set(p.attributes)) == len(p.attributes) <= MAX_ATTRIBUTES for p in drawn)
    has_extras = [any(rule.unless or len(rule.when) > 1 for rule in p.rules) for p in drawn]
    assert all(has_extras) if difficulty == 3 else not any(has_extras)


def test_most_policies_of_difficulty_two_have_two_to_four_rules() -> None:
    counts = [len(draw_policy(random.Random(seed), 2).rules) for seed in range(300)]
    assert sum(2 <= count <= 4 for count in counts) > 0.8 * len(counts)
    assert max(counts) == 5


@pytest.mark.parametrize(("index", "label"), [(0, "A"), (25, "Z"), (26, "AA"), (27, "AB"), (51, "AZ"), (52, "BA"), (702, "AAA")])
def test_step_labels_go_on_after_z(index: int, label: str) -> None:
    assert step_label(index) == label
