"""Rows of the procedures task for the sft, preference and prompts tables.

Every row has a policy of its own: none repeats in another row, table or split.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from data_processing.config import ProceduresConfig, Split
from data_processing.errors import ConfigError
from data_processing.procedures.corruptions import CORRUPTIONS, corrupt
from data_processing.procedures.optimal import Procedure, optimal_procedure, render
from data_processing.procedures.policy import RULE_COUNTS, Policy, draw_policy, parse_policy, prompt_text
from data_processing.schemas import TableName, content_id
from data_processing.turns import ASKED, with_text_behind

Row = dict[str, Any]
SOURCE = "procedures"
_MAX_REPEATS = 1000  # draws in a row that give policies seen before; then the space counts as used up


class _Drawer:
    """Draws policies that were not drawn before. Two policies with the same rules are the same, whatever the category."""

    def __init__(self, difficulty: int) -> None:
        self.difficulty = difficulty
        self._seen: set[str] = set()

    def draw(self, rng: random.Random, n_rules: int | None = None) -> Policy:
        for _ in range(_MAX_REPEATS):
            policy = draw_policy(rng, self.difficulty, n_rules)
            content = policy.model_dump_json(exclude={"category"})
            if content not in self._seen:
                self._seen.add(content)
                return policy
        raise ConfigError(
            f"data.procedures: {len(self._seen)} different policies were drawn and no new one of difficulty "
            f"{self.difficulty} was found; lower the row counts or raise the difficulty"
        )

    def prompt(self, policy: Policy, rng: random.Random) -> list[dict[str, str]]:
        text = prompt_text(policy, rng, shuffled=self.difficulty > 1)
        return [{"role": "user", "content": text}]


def procedures_rows(config: ProceduresConfig, seed: int) -> dict[tuple[TableName, Split], list[Row]]:
    """Rows of every table and split.

    Each table and split has its own random stream, and held-out splits come first: the test set stays the same when
    the number of training rows changes.
    """
    drawer = _Drawer(config.difficulty)
    makers: dict[TableName, tuple[Callable[[_Drawer, random.Random, int], list[Row]], int]] = {
        "sft": (_sft_rows, config.sft_rows),
        "preference": (_preference_rows, config.preference_pairs),
        "prompts": (
            partial(_plan_rows, config.plan_instruction) if config.plan_instruction else _prompt_rows,
            config.prompt_rows,
        ),
    }
    rows: dict[tuple[TableName, Split], list[Row]] = {}
    splits: tuple[tuple[Split, int | None], ...] = (
        ("test", config.test_rows),
        ("validation", config.validation_rows),
        ("train", None),
    )
    for split, count in splits:
        for table, (make, train_rows) in makers.items():
            rng = random.Random(f"procedures/{seed}/{config.difficulty}/{table}/{split}")
            rows[table, split] = make(drawer, rng, train_rows if count is None else count)
    noise = random.Random(f"procedures/{seed}/noise")
    rows["preference", "train"] = _with_flips(rows["preference", "train"], config.noisy_label_fraction, noise)
    return rows


def _sft_rows(drawer: _Drawer, rng: random.Random, count: int) -> list[Row]:
    rows = []
    for _ in range(count):
        policy = drawer.draw(rng)
        messages = [*drawer.prompt(policy, rng), _answer(optimal_procedure(policy))]
        rows.append({"id": content_id(messages), "messages": messages, "source": SOURCE})
    return rows


def _prompt_rows(drawer: _Drawer, rng: random.Random, count: int) -> list[Row]:
    rows = []
    for _ in range(count):
        policy = drawer.draw(rng)
        prompt = drawer.prompt(policy, rng)
        rows.append({"id": content_id(prompt), "prompt": prompt, "label": policy.label(), "source": SOURCE})
    return rows


def _plan_rows(instruction: str, drawer: _Drawer, rng: random.Random, count: int) -> list[Row]:
    """Rows whose label is the procedure, and whose prompt asks for a plan of it; without the instruction it is kept beside."""
    rows = []
    for row in _prompt_rows(drawer, rng, count):
        procedure = render(optimal_procedure(parse_policy(row["label"])))
        told = with_text_behind(row["prompt"], f"\n\n{instruction}")
        rows.append({**row, "prompt": told, "label": procedure, "extra": json.dumps({ASKED: row["prompt"]})})
    return rows


def _preference_rows(drawer: _Drawer, rng: random.Random, count: int) -> list[Row]:
    """Every corruption equally often; `detail` is JSON: corruption, faulty_step (index in the corrupted text), flipped."""
    names = [
        name for i, name in enumerate(CORRUPTIONS) for _ in range(count // len(CORRUPTIONS) + (i < count % len(CORRUPTIONS)))
    ]
    rng.shuffle(names)
    return [_pair(drawer, rng, name) for name in names]


def _pair(drawer: _Drawer, rng: random.Random, name: str) -> Row:
    while True:
        policy = drawer.draw(rng, _rule_count(name, drawer.difficulty, rng))
        optimal = optimal_procedure(policy)
        candidate = corrupt(name, optimal, policy, rng)
        if candidate is not None:
            break
    rejected, faulty_step = candidate
    prompt, chosen, rejected_answer = drawer.prompt(policy, rng), [_answer(optimal)], [_answer(rejected)]
    return {
        "id": content_id([prompt, chosen, rejected_answer]),
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected_answer,
        "margin": None,
        "detail": json.dumps({"corruption": name, "faulty_step": faulty_step, "flipped": False}),
        "source": SOURCE,
    }


def _rule_count(name: str, difficulty: int, rng: random.Random) -> int | None:
    """Number of rules for a corruption; None leaves it to the usual shares.

    Corruptions that add or remove a step draw it uniformly from the counts that keep both sides of the pair within the
    usual range: then as many pairs go from n steps to n + 1 as from n + 1 to n, and the length says nothing.
    """
    added = CORRUPTIONS[name].added_steps
    counts = RULE_COUNTS[difficulty]
    return rng.choice([n for n in counts if n + added in counts]) if added else None


def _with_flips(pairs: list[Row], fraction: float, rng: random.Random) -> list[Row]:
    """Chosen and rejected change places in exactly the rounded share of pairs; `detail` says so."""
    flipped = set(rng.sample(range(len(pairs)), round(fraction * len(pairs))))
    return [_flipped(pair) if i in flipped else pair for i, pair in enumerate(pairs)]


def _flipped(pair: Row) -> Row:
    detail = json.dumps({**json.loads(pair["detail"]), "flipped": True})
    return {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"], "detail": detail}


def _answer(procedure: Procedure) -> dict[str, str]:
    return {"role": "assistant", "content": render(procedure)}
