"""What the rewards of many responses say of the sources: how they are spread, and what they go with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class PartFacts:
    """A source over many responses: how many numbers it gave, `absent` where it did not apply and `failed` (NaN), and those.

    `with_length` and `with_parts` are Pearson correlations, None where one of the two never changes or fewer than three are known.
    A reward that goes with the length pays for length; two that go together are one aim counted twice.
    """

    name: str
    count: int
    absent: int
    failed: int
    mean: float | None
    sd: float | None
    quartiles: tuple[float, float, float, float, float] | None
    with_length: float | None
    with_parts: Mapping[str, float | None]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def part_facts(by_source: Mapping[str, Sequence[float | None]], lengths: Sequence[float]) -> Iterator[PartFacts]:
    """Facts on each source, from one value a response (None: does not apply, NaN: failed) and the responses' lengths."""
    values = {name: np.array([math.nan if v is None else v for v in given], dtype=float) for name, given in by_source.items()}
    for name, given in by_source.items():
        own = values[name]
        known = own[~np.isnan(own)]
        absent = sum(value is None for value in given)
        yield PartFacts(
            name=name,
            count=len(known),
            absent=absent,
            failed=len(given) - len(known) - absent,
            mean=float(known.mean()) if len(known) else None,
            sd=float(known.std()) if len(known) else None,
            quartiles=tuple(map(float, np.quantile(known, (0, 0.25, 0.5, 0.75, 1)))) if len(known) else None,  # type: ignore[arg-type]
            with_length=correlation(own, np.asarray(lengths, dtype=float)),
            with_parts={other: correlation(own, theirs) for other, theirs in values.items() if other != name},
        )


def correlation(one: Any, other: Any) -> float | None:
    """Pearson's, over the places where both [N] are known; None where that says nothing."""
    both = ~(np.isnan(one) | np.isnan(other))
    one, other = one[both], other[both]
    if len(one) < 3 or one.std() < 1e-12 or other.std() < 1e-12:
        return None
    return float(np.corrcoef(one, other)[0, 1])
