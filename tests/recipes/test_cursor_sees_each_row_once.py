"""The rows of a step depend on the step alone, an epoch is every row once, and sources are mixed as weights say."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_processing.errors import ConfigError, DataError
from rlhf_core.batching.balance import order
from rlhf_core.batching.rows import TokenRow
from rlhf_core.recipes import row_order
from rlhf_core.recipes.cursor import DataCursor, plan_cursor
from rlhf_core.recipes.examples import Example
from rlhf_core.recipes.prompts import Prompt
from rlhf_core.recipes.row_order import RowOrder, counts
from rlhf_core.settings.supervised import SftConfig
from rlhf_core.settings.training import OrderSettings

PLAIN = OrderSettings()


def rows(n_rows: int) -> list[Prompt]:
    return [Prompt(str(number), [], None, [number]) for number in range(n_rows)]


def cursor(n_rows: int, batch_size: int, seed: int = 0, **changes: Any) -> DataCursor:
    return plan_cursor(SftConfig(batch_size=batch_size, **changes), rows(n_rows), seed)


@settings(max_examples=50, deadline=None)
@given(n_rows=st.integers(1, 60), batch_size=st.integers(1, 20), epochs=st.integers(1, 3), seed=st.integers(0, 5))
def test_every_epoch_has_each_row_exactly_once(n_rows: int, batch_size: int, epochs: int, seed: int) -> None:
    plan = cursor(n_rows, batch_size, seed, epochs=float(epochs))
    steps = iter([plan.batch(step) for step in range(plan.total_steps)])
    for _ in range(epochs):
        seen = [row for _ in range(plan.steps_per_epoch) for row in next(steps)]
        assert sorted(seen) == list(range(n_rows))
    assert next(steps, None) is None


def test_epochs_are_shuffled_differently_and_seeds_too() -> None:
    plan = cursor(50, 50, max_steps=2)
    assert plan.batch(0) != plan.batch(1)
    assert plan.batch(0) != cursor(50, 50, 1).batch(0)


def test_an_epoch_is_shuffled_once_for_all_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    shuffled = []
    monkeypatch.setattr(row_order, "order", lambda n, seed, epoch: shuffled.append((n, seed, epoch)) or order(n, seed, epoch))
    plan = cursor(47, 5, 11, max_steps=20)
    stream = RowOrder(PLAIN, rows(48), 11, n_seen=96)
    for step in range(20):
        plan.batch(step)
    for step in range(24):
        stream.at(4 * step, 4)
    assert shuffled == [(47, 11, 0), (47, 11, 1), (48, 11, 0), (48, 11, 1)]


def test_max_steps_replaces_epochs() -> None:
    assert cursor(10, 4, max_steps=7).total_steps == 7
    assert cursor(10, 4, epochs=0.7).total_steps == 2


def test_a_run_without_a_step_is_refused_with_the_setting_that_would_do() -> None:
    with pytest.raises(ConfigError, match=r"epochs=0\.1 of 10 rows in batches of 5.*epochs >= 0\.5"):
        cursor(10, 5, epochs=0.1)


def test_a_table_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        cursor(0, 5, max_steps=3)


def examples(sizes: dict[str, int]) -> list[Example]:
    """Rows of 2 to 9 tokens from named sources."""
    names = [name for name, size in sizes.items() for _ in range(size)]
    drawn = [TokenRow.from_prompt_response([1], [2] * (1 + number * 5 % 8)) for number in range(len(names))]
    return [Example(str(i), (row,), source=name) for i, (name, row) in enumerate(zip(names, drawn, strict=True))]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.dictionaries(st.sampled_from("abcde"), st.integers(1, 30), min_size=2),
    weights=st.dictionaries(st.sampled_from("abcde"), st.floats(0.1, 9.0)),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 10.0]),
    seed=st.integers(0, 3),
)
def test_sources_have_their_shares_and_their_rows_come_equally_often(
    sizes: dict[str, int], weights: dict[str, float], temperature: float, seed: int
) -> None:
    weights = {name: weight for name, weight in weights.items() if name in sizes}
    table = examples(sizes)
    mixed = RowOrder(OrderSettings(source_weights=weights, temperature=temperature), table, seed, 10_000)
    taken = {name: (weights.get(name, 1.0) * size) ** (1 / temperature) for name, size in sizes.items()}
    in_all: Counter[int] = Counter()
    for epoch in range(4):
        drawn = mixed.epoch(epoch)
        assert len(drawn) == len(table)
        assert drawn == RowOrder(mixed_settings(weights, temperature), table, seed, 10_000).epoch(epoch)
        in_all.update(drawn)
        found = Counter(table[row].source for row in drawn)
        for name, share in taken.items():
            quota = share / sum(taken.values()) * len(table)
            # No source is left out, and what that takes comes from the largest.
            assert 1 <= found[name] <= quota + 1
            assert found[name] > quota - 1 or min(quota_of(taken, other, len(table)) for other in taken) < 1
    for name in sizes:
        times = [in_all[number] for number, row in enumerate(table) if row.source == name]
        assert max(times) - min(times) <= 1


def mixed_settings(weights: dict[str, float], temperature: float) -> OrderSettings:
    return OrderSettings(source_weights=weights, temperature=temperature)


def quota_of(taken: dict[str, float], name: str, n_rows: int) -> float:
    return taken[name] / sum(taken.values()) * n_rows


def test_weights_and_temperature_are_what_the_formula_says() -> None:
    table = examples({"large": 81, "small": 9, "unwanted": 10})
    even = RowOrder(OrderSettings(source_weights={"unwanted": 0}, temperature=2.0), table, 0, 100).epoch(0)
    # sqrt(81) : sqrt(9) = 3 : 1
    assert Counter(table[row].source for row in even) == {"large": 75, "small": 25}
    doubled = RowOrder(OrderSettings(source_weights={"small": 9, "unwanted": 0}), table, 0, 100).epoch(0)
    assert Counter(table[row].source for row in doubled) == {"large": 50, "small": 50}


def test_weights_of_one_change_nothing() -> None:
    table = examples({"a": 20, "b": 5})
    assert RowOrder(OrderSettings(source_weights={"a": 1.0}), table, 3, 25).epoch(1) == RowOrder(PLAIN, table, 3, 25).epoch(1)


def test_more_sources_than_rows_are_counted_too() -> None:
    assert sum(counts({"a": 0.9, "b": 0.05, "c": 0.05}, 2).values()) == 2
    assert counts({"a": 0.98, "b": 0.01, "c": 0.01}, 10) == {"a": 8, "b": 1, "c": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_weights": {"alpaka": 2.0}}, r"no row comes from \['alpaka'\]; use names of the sources: \['alpaca', 'other'\]"),
        ({"source_weights": {"alpaca": 0.0, "other": 0.0}}, "every source weighs 0"),
        ({"curriculum": "pass_rate"}, "12 of 12 rows have no number in the column pass_rate"),
    ],
)
def test_an_order_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RowOrder(OrderSettings(**changes), examples({"alpaca": 8, "other": 4}), 0, 12)


def test_a_weight_below_zero_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        OrderSettings(source_weights={"a": -1.0})


def test_a_curriculum_goes_from_short_to_long_in_the_first_pass_only() -> None:
    table = examples({"a": 40})
    upward = RowOrder(OrderSettings(curriculum="length"), table, 0, n_seen=80)
    lengths = [[table[row].length_tokens for row in upward.epoch(epoch)] for epoch in (0, 1)]
    assert lengths[0] == sorted(lengths[0])
    assert lengths[1] != sorted(lengths[1])
    assert sorted(upward.epoch(0)) == list(range(40))


def test_a_curriculum_of_a_run_shorter_than_a_pass_still_reaches_the_long_rows() -> None:
    table = examples({"a": 40})
    shorter = RowOrder(OrderSettings(curriculum="length"), table, 0, n_seen=16)
    seen = [table[row].length_tokens for row in shorter.at(0, 16)]
    assert seen == sorted(seen)
    assert set(shorter.at(0, 16)) == set(RowOrder(PLAIN, table, 0, 16).at(0, 16))


def test_prompts_that_were_solved_most_often_come_first() -> None:
    rates = [0.5, 1.0, 0.0, 0.25]
    prompts = [Prompt(str(i), [], None, [i], {"pass_rate": rate}) for i, rate in enumerate(rates)]
    assert RowOrder(OrderSettings(curriculum="pass_rate"), prompts, 0, 4).epoch(0) == [1, 0, 3, 2]
