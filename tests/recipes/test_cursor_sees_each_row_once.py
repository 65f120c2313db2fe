"""The rows of a step depend on the step alone, and an epoch is every row once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_processing.errors import ConfigError, DataError
from rlhf_core.batching.balance import order
from rlhf_core.recipes import cursor
from rlhf_core.recipes.cursor import DataCursor, plan_cursor
from rlhf_core.recipes.prompts import Prompt, prompts_at


@settings(max_examples=50, deadline=None)
@given(n_rows=st.integers(1, 60), batch_size=st.integers(1, 20), epochs=st.integers(1, 3), seed=st.integers(0, 5))
def test_every_epoch_has_each_row_exactly_once(n_rows: int, batch_size: int, epochs: int, seed: int) -> None:
    plan = plan_cursor(n_rows, batch_size, float(epochs), None, seed)
    steps = iter([plan.batch(step) for step in range(plan.total_steps)])
    for _ in range(epochs):
        rows = [row for _ in range(plan.steps_per_epoch) for row in next(steps)]
        assert sorted(rows) == list(range(n_rows))
    assert next(steps, None) is None


def test_epochs_are_shuffled_differently_and_seeds_too() -> None:
    rows = DataCursor(n_rows=50, batch_size=50, seed=0, total_steps=2)
    assert rows.batch(0) != rows.batch(1)
    assert rows.batch(0) != DataCursor(50, 50, 1, 2).batch(0)


def test_an_epoch_is_shuffled_once_for_all_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    shuffled = []
    monkeypatch.setattr(cursor, "order", lambda n, seed, epoch: shuffled.append((n, seed, epoch)) or order(n, seed, epoch))
    rows = DataCursor(n_rows=47, batch_size=5, seed=11, total_steps=20)
    prompts = [Prompt(str(number), [], None, [number]) for number in range(48)]
    for step in range(20):
        rows.batch(step)
    for step in range(24):
        prompts_at(prompts, 4 * step, 4, seed=11)
    assert shuffled == [(47, 11, 0), (47, 11, 1), (48, 11, 0), (48, 11, 1)]


def test_max_steps_replaces_epochs() -> None:
    assert plan_cursor(10, 4, 1.0, 7, 0).total_steps == 7
    assert plan_cursor(10, 4, 0.7, None, 0).total_steps == 2


def test_a_run_without_a_step_is_refused_with_the_setting_that_would_do() -> None:
    with pytest.raises(ConfigError, match=r"epochs=0\.1 of 10 rows in batches of 5.*epochs >= 0\.5"):
        plan_cursor(10, 5, 0.1, None, 0)


def test_a_table_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        plan_cursor(0, 5, 1.0, 3, 0)
