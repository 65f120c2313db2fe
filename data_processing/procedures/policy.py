"""Policies of the procedures task: what they are, how they decide, how they are drawn, and how they read.

A policy decides a product by its rules in priority order: the first rule that applies gives the outcome.
"""

from __future__ import annotations

import random
from functools import cached_property
from itertools import product
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from data_processing.errors import DataError
from data_processing.procedures.vocabulary import ATTRIBUTES, CATEGORIES, OUTCOMES, Outcome

MAX_ATTRIBUTES = 8  # the checker executes every combination of them

# Share of policies with each number of rules, by difficulty.
RULE_COUNTS: dict[int, dict[int, float]] = {
    1: {2: 0.5, 3: 0.5},
    2: {2: 0.3, 3: 0.35, 4: 0.25, 5: 0.1},
    3: {2: 0.4, 3: 0.4, 4: 0.2},
}
PRIORITY_WORDS: tuple[tuple[str, ...], ...] = (
    ("First, ", "Second, ", "Third, ", "Fourth, ", "Fifth, "),
    ("Priority one: ", "Priority two: ", "Priority three: ", "Priority four: ", "Priority five: "),
)


class Rule(BaseModel):
    """Applies to products with every attribute of `when` and without the attribute `unless`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    when: tuple[str, ...] = Field(min_length=1, max_length=2)
    unless: str | None = None
    outcome: Outcome

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes the rule looks at."""
        return self.when if self.unless is None else (*self.when, self.unless)

    @field_validator("when", "unless")
    @classmethod
    def _known(cls, value: Any) -> Any:
        unknown = [name for name in ([value] if isinstance(value, str) else value or ()) if name not in ATTRIBUTES]
        if unknown:
            raise ValueError(f"unknown attributes {unknown}")
        return value

    def applies(self, holds: dict[str, bool]) -> bool:
        """Whether the rule decides a product, given which attributes it has."""
        return all(holds[name] for name in self.when) and not (self.unless is not None and holds[self.unless])


class Policy(BaseModel):
    """A product category, rules in priority order, and the outcome where no rule applies."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    category: str
    rules: tuple[Rule, ...] = Field(min_length=1)
    default: Outcome

    @model_validator(mode="after")
    def _small_enough(self) -> Policy:
        if len(self.attributes) > MAX_ATTRIBUTES:
            raise ValueError(f"{len(self.attributes)} attributes, at most {MAX_ATTRIBUTES} are allowed")
        return self

    @cached_property
    def attributes(self) -> tuple[str, ...]:
        """Names of all attributes, in the order in which the rules mention them."""
        return tuple(dict.fromkeys(name for rule in self.rules for name in rule.attributes))

    @cached_property
    def decisions(self) -> tuple[Outcome, ...]:
        """The outcome of every combination of `attributes`, in the order of `itertools.product((False, True), ...)`."""
        combinations = product((False, True), repeat=len(self.attributes))
        return tuple(self.decide(dict(zip(self.attributes, values, strict=True))) for values in combinations)

    def decide(self, holds: dict[str, bool]) -> Outcome:
        """The outcome of a product, given which attributes it has."""
        return next((rule.outcome for rule in self.rules if rule.applies(holds)), self.default)

    def label(self) -> str:
        """The policy as JSON: what the checker needs beside the answer."""
        return self.model_dump_json(exclude_defaults=True)


def parse_policy(label: str) -> Policy:
    """The policy of a label; raises `DataError` where the label is not one."""
    try:
        return Policy.model_validate_json(label)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"label {label[:80]!r} is not a policy of the procedures task: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from error


def is_policy(label: str) -> bool:
    """Whether a prompt's label is a policy of the built-in task."""
    try:
        parse_policy(label)
    except DataError:
        return False
    return True


def draw_policy(rng: random.Random, difficulty: int, n_rules: int | None = None) -> Policy:
    """A random policy in which every attribute can change the outcome; `n_rules` is drawn when not given."""
    counts = RULE_COUNTS[difficulty]
    if n_rules is None:
        n_rules = rng.choices(list(counts), weights=list(counts.values()))[0]
    while True:
        policy = _draw(rng, n_rules, with_extras=difficulty == 3)
        if _every_attribute_matters(policy) and (difficulty < 3 or len(policy.attributes) > n_rules):
            return policy


def _draw(rng: random.Random, n_rules: int, with_extras: bool) -> Policy:
    names = iter(rng.sample(list(ATTRIBUTES), 3 * n_rules))
    rules = []
    for _ in range(n_rules):
        extra = rng.choice(("and", "unless", None)) if with_extras else None
        when = (next(names), next(names)) if extra == "and" else (next(names),)
        unless = next(names) if extra == "unless" else None
        rules.append(Rule(when=when, unless=unless, outcome=rng.choice(OUTCOMES)))
    return Policy(category=rng.choice(CATEGORIES), rules=tuple(rules), default=rng.choice(OUTCOMES))


def _every_attribute_matters(policy: Policy) -> bool:
    table, n = policy.decisions, len(policy.attributes)
    return all(any(table[row] != table[row ^ (1 << bit)] for row in range(len(table))) for bit in range(n))


def prompt_text(policy: Policy, rng: random.Random, shuffled: bool) -> str:
    """The policy in prose, one rule a line; `shuffled` lists the rules in any order and states their priority in words."""
    lines = [_rule_text(rule) for rule in policy.rules]
    if shuffled:
        words = rng.choice(PRIORITY_WORDS)
        lines = [word + line for word, line in zip(words, lines, strict=False)]
        rng.shuffle(lines)
    else:
        lines = [line[0].upper() + line[1:] for line in lines]
    opening = f"Write the review procedure for a {policy.category}."
    return "\n".join([opening, *lines, f"Otherwise, {policy.default.lower()} it."])


def _rule_text(rule: Rule) -> str:
    condition = " and ".join(ATTRIBUTES[name] for name in rule.when)
    exception = f", unless it {ATTRIBUTES[rule.unless]}" if rule.unless else ""
    return f"if it {condition}, {rule.outcome.lower()} it{exception}."
