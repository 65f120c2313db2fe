"""What segment rewards are usual at which position of a response: their means and deviations, fitted by the logarithm of it.

Source: segment_reward.md 6. `params.json` holds fits of many models, in the shape that is documented there.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from data_processing.errors import ConfigError

EPSILON, ALPHA = 1.35, 1e-4  # of the Huber loss, and of the slope's penalty
_TINY = 1e-10  # added to a position under the logarithm
_LEAST = "0.000"  # its logarithm would be -23: of responses with more than 2,000 segments


@dataclass(frozen=True, slots=True)
class PositionFit:
    """Slopes and intercepts over log(position) of the mean and of the standard deviation."""

    w_mean: float
    w_std: float
    b_mean: float
    b_std: float

    def mean(self, position: float) -> float:
        """The usual reward of a segment that ends there."""
        return self.w_mean * math.log(position + _TINY) + self.b_mean

    def std(self, position: float) -> float:
        """Its deviation, which may come out negative: see `std_floor`."""
        return self.w_std * math.log(position + _TINY) + self.b_std


@dataclass(frozen=True, slots=True)
class Bins:
    """Segment rewards by position, to three decimals: mean, population deviation and number."""

    mean: Mapping[str, float]
    std: Mapping[str, float]
    count: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Line:
    """A fitted line, the scale of what is left, and the share of the variance that it explains."""

    w: float
    b: float
    scale: float
    r2: float


def bins(segment_rewards: Iterable[Sequence[float]]) -> Bins:
    """The rewards of each response's segments, by the share of the segments that is completed with each."""
    found = defaultdict(list)
    for values in segment_rewards:
        for k, value in enumerate(values):
            found[_key(k, len(values))].append(value)
    keys = sorted(found)
    return Bins(
        {key: fmean(found[key]) for key in keys},
        {key: pstdev(found[key]) for key in keys},
        {key: len(found[key]) for key in keys},
    )


def position_counts(responses_by_segments: Mapping[int, int]) -> Counter[str]:
    """How many segments stand at each position, from how many responses have so many segments."""
    counts: Counter[str] = Counter()
    for n_segments, n_responses in responses_by_segments.items():
        for k in range(n_segments):
            counts[_key(k, n_segments)] += n_responses
    return counts


def _key(k: int, n_segments: int) -> str:
    return f"{(k + 1) / n_segments:.3f}"


def fit(found: Bins, *, min_count: int = 1, weight_by_count: bool = False) -> tuple[Line, Line]:
    """Lines of mean and deviation over log(position) by a Huber loss with its scale fitted too.

    A fit that explains little is no error. Raises `ConfigError` where no position is left to fit.
    """
    keys = kept_positions(found.count, min_count)
    weights = [float(found.count[key]) for key in keys] if weight_by_count else [1.0] * len(keys)
    x = [math.log(float(key) + _TINY) for key in keys]
    mean, std = (_line(x, [values[key] for key in keys], weights) for values in (found.mean, found.std))
    return mean, std


def kept_positions(counts: Mapping[str, int], min_count: int) -> list[str]:
    """The positions with at least so many segments; raises `ConfigError` where there are none."""
    keys = [key for key, count in counts.items() if key != _LEAST and count >= min_count]
    if not keys:
        raise ConfigError(
            f"segment.fit_min_count={min_count}: no position has so many segments; lower it, or train on more pairs"
        )
    return keys


def _line(x: Sequence[float], y: Sequence[float], weights: Sequence[float]) -> Line:
    if len(set(y)) == 1:
        return Line(0.0, y[0], 0.0, 0.0)  # one position, or rewards that are all alike: there is no scale to fit
    import numpy as np
    from sklearn.linear_model import HuberRegressor

    across = np.asarray(x)[:, None]
    # Its optimiser stops early by default where the scale is small, and gives up with less patience where points are on a line.
    model = HuberRegressor(epsilon=EPSILON, alpha=ALPHA, max_iter=10_000, tol=1e-9)
    try:
        model.fit(across, y, sample_weight=weights)
    except ValueError:
        model.set_params(tol=1e-5).fit(across, y, sample_weight=weights)
    left = float(((np.asarray(y) - model.predict(across)) ** 2).sum())
    r2 = 1 - left / float(((np.asarray(y) - np.mean(y)) ** 2).sum())
    return Line(float(model.coef_[0]), float(model.intercept_), float(model.scale_), r2)


def with_params(path: Path, names: Sequence[str], threshold: float, found: PositionFit) -> dict[str, Any]:
    """The content of `path`, empty where it is not there, with a fit under model, dataset, method, aggregation and threshold."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    place = content
    for name in names:
        place = place.setdefault(name, {})
    place[repr(float(threshold))] = [found.w_mean, found.w_std, found.b_mean, found.b_std]
    return content


class MissingFitError(ConfigError):
    """There is no fit for what is asked, and nothing is wrong with the file."""


def read_params(path: Path, names: Sequence[str], threshold: float) -> PositionFit:
    """The fit under these names; thresholds are compared as numbers.

    Raises `MissingFitError` that says what is there, `ConfigError` for a file that is damaged.
    """
    try:
        place: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingFitError(f"{path}: there is no fit of segment rewards") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: no fit of segment rewards can be read from it: {error}") from error
    for number, name in enumerate(names):
        if not isinstance(place, dict):
            raise ConfigError(f"{path}: holds {place!r} where fits by {name} should be; it is damaged")
        if name not in place:
            raise MissingFitError(f"{path}: no fit for {'/'.join(names[: number + 1])}; there are {sorted(place)}")
        place = place[name]
    try:
        values = next((value for key, value in place.items() if float(key) == threshold), None)
        found = None if values is None else PositionFit(*map(float, values))
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: the fits for {'/'.join(names)} cannot be read ({error}); it is damaged") from error
    if found is None:
        raise MissingFitError(f"{path}: no fit for {'/'.join(names)} with threshold {threshold:g}; there are {sorted(place)}")
    return found
