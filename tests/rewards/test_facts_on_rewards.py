"""What the rewards of many responses say of their sources."""

import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_processing.schemas import to_table, write_table
from rlhf_core.recipes.online.reward_facts import write_reward_facts
from rlhf_core.rewards.facts import part_facts


def test_a_source_is_told_by_its_numbers_and_by_those_it_lacks() -> None:
    values = [0.0, 1.0, None, 2.0, math.nan, 3.0, 4.0, None]
    [facts] = part_facts({"one": values}, [1.0] * 8)
    assert (facts.count, facts.absent, facts.failed) == (5, 2, 1)
    assert facts.mean == 2.0 and facts.sd == pytest.approx(math.sqrt(2))
    assert facts.quartiles == (0.0, 1.0, 2.0, 3.0, 4.0)
    assert facts.with_length is None, "all are as long"


def test_what_goes_together_is_told() -> None:
    rng = random.Random(0)
    lengths = [rng.uniform(5, 50) for _ in range(100)]
    long = [2 * length + 1 for length in lengths]
    other: list[float | None] = [-value if i % 3 else None for i, value in enumerate(long)]
    flat = [1.0] * 100
    facts = {found.name: found for found in part_facts({"long": long, "other": other, "flat": flat}, lengths)}
    assert facts["long"].with_length == pytest.approx(1.0) and facts["other"].with_length == pytest.approx(-1.0)
    assert facts["long"].with_parts == {"other": pytest.approx(-1.0), "flat": None}
    assert facts["flat"].with_length is None


@given(st.lists(st.one_of(st.none(), st.just(math.nan), st.floats(-1e6, 1e6)), max_size=20))
def test_every_response_is_counted_once(values: list[float | None]) -> None:
    [facts] = part_facts({"any": values}, [float(i) for i in range(len(values))])
    assert facts.count + facts.absent + facts.failed == len(values)
    assert facts.with_length is None or -1.0001 <= facts.with_length <= 1.0001
    json.dumps(facts.to_json(), allow_nan=False)


def test_the_rounds_of_a_run_are_taken_together(tmp_path: Path) -> None:
    def row(i: int, step: int, rewards: list[tuple[str, float | None]]) -> dict[str, object]:
        ids = [1] * (i + 1)
        kept = {"prompt_ids": [1], "response_ids": ids, "logprobs": [0.0] * len(ids), "length_tokens": len(ids)}
        return {
            "prompt_id": f"p{i}",
            "step": step,
            "sample": 0,
            "weight_version": 0,
            "rewards": rewards,
            "finish_reason": "stop",
        } | kept

    first = [row(i, 1, [("a", float(i))]) for i in range(4)]
    second = [row(i, 2, [("a", None), ("b", 1.0)]) for i in range(3)]
    for step, rows in ((1, first), (2, second)):
        write_table("rollouts", to_table("rollouts", rows), tmp_path / f"step-{step:05d}.parquet")
    write_reward_facts(tmp_path, tmp_path / "rewards.json")
    told = json.loads((tmp_path / "rewards.json").read_text())
    assert told["responses"] == 7
    assert [(part["name"], part["count"], part["absent"]) for part in told["parts"]] == [("a", 4, 3), ("b", 3, 4)]
    assert told["parts"][0]["with_length"] == pytest.approx(1.0)
