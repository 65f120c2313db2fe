"""What the rewards of a whole run say of their sources, from the rounds that are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from rlhf_core.rewards.facts import part_facts

# In the artifact; the report reads it.
REWARD_FACTS = "rewards.json"


def write_reward_facts(rollouts: Path, path: Path) -> None:
    """From the `rollouts` tables of a folder to JSON: how each source is spread, and what it goes with.

    A response that a source had no number for, as it did not apply or failed, counts as `absent`.
    """
    by_source: dict[str, list[float | None]] = {}
    lengths: list[float] = []
    for file in sorted(rollouts.glob("step-*.parquet")):
        table = pq.read_table(file, columns=["rewards", "length_tokens"])
        for rewards, length in zip(table["rewards"].to_pylist(), table["length_tokens"].to_pylist(), strict=True):
            given = dict(rewards)
            for name in given.keys() - by_source.keys():
                by_source[name] = [None] * len(lengths)
            lengths.append(length)
            for name, values in by_source.items():
                values.append(given.get(name))
    facts = [facts.to_json() for facts in part_facts(by_source, lengths)]
    path.write_text(json.dumps({"responses": len(lengths), "parts": facts}), encoding="utf-8")
