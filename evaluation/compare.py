"""Models against each other on the same prompts: paired differences, a verdict, and the challenger.

Reads evaluation artifacts only; knows no model and no torch. The decoding that decides is the first of
`measures.DECODINGS` in which the primary metric exists: sampled answers, unless the metric needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from data_processing.errors import ConfigError, DataError
from evaluation.bootstrap import Interval, Resampling
from evaluation.config import PRIMARY_METRICS, CompareConfig
from evaluation.measures import DECODINGS, Measure
from evaluation.results import Evaluation, IntervalTable, intervals_json

Judgement = Literal["better", "worse", "no difference"]


@dataclass(frozen=True)
class Comparison:
    """Every model's statistics, its paired differences against the baseline, and who may become challenger."""

    models: Mapping[str, IntervalTable]
    paired: Mapping[str, IntervalTable]
    judgements: Mapping[str, Judgement]
    challenger: str | None
    reason: str
    primary_metric: str
    decoding: str
    baseline: str

    def to_json(self) -> dict[str, Any]:
        """The content of `verdict.json`."""
        return {
            "models": {name: intervals_json(table) for name, table in self.models.items()},
            "paired": {name: intervals_json(table) for name, table in self.paired.items()},
            "judgements": dict(self.judgements),
            "challenger": self.challenger,
            "reason": self.reason,
            "primary_metric": self.primary_metric,
            "decoding": self.decoding,
            "baseline": self.baseline,
        }


def compare(
    evaluations: Mapping[str, Evaluation], config: CompareConfig, seed: int, warn: Callable[[str], None] = lambda _: None
) -> Comparison:
    """Compare every evaluated model with the baseline; `evaluations` is keyed by model name.

    Raises `ConfigError` where the baseline was not evaluated or the primary metric cannot decide, `DataError` where
    two models answered different prompts. A candidate that was not evaluated is left out with a warning.
    """
    baseline = _baseline(evaluations, config)
    measure, decoding = _primary(baseline, config)
    resampling = Resampling(resamples=config.bootstrap_resamples, confidence=config.confidence, seed=seed)
    paired = {
        name: _differences(name, other, baseline, resampling) for name, other in evaluations.items() if other is not baseline
    }
    judgements = {name: _judge(table.get(decoding, {}).get(measure.name), measure) for name, table in paired.items()}
    for name in config.named_candidates:
        if name not in paired:
            warn(f"candidate '{name}' was not evaluated and is left out; evaluated: {sorted(evaluations)}")
    challenger, reason = _challenger(paired, judgements, config, (measure, decoding))
    return Comparison(
        models={name: evaluation.intervals(resampling) for name, evaluation in evaluations.items()},
        paired=paired,
        judgements=judgements,
        challenger=challenger,
        reason=reason,
        primary_metric=measure.name,
        decoding=decoding,
        baseline=config.named_baseline,
    )


def _baseline(evaluations: Mapping[str, Evaluation], config: CompareConfig) -> Evaluation:
    if config.named_baseline not in evaluations:
        raise ConfigError(
            f"compare.baseline: '{config.named_baseline}' was not evaluated; evaluated models: {sorted(evaluations)}. "
            "Name one of these, or run the stages that train it"
        )
    if config.named_baseline in config.named_candidates:
        raise ConfigError(f"compare.candidates: '{config.named_baseline}' is the baseline; a model cannot be its own challenger")
    return evaluations[config.named_baseline]


def _primary(baseline: Evaluation, config: CompareConfig) -> tuple[Measure, str]:
    """The measure that decides, and the decoding it is read from."""
    name = config.primary_metric or next((n for n in PRIMARY_METRICS if n in baseline.measures), None)
    measure = None if name is None else baseline.measures.get(name)
    deciding = sorted(name for name, m in baseline.measures.items() if m.better != "neither")
    if measure is None:
        raise ConfigError(
            f"compare.primary_metric: '{config.primary_metric}' was not measured for '{config.named_baseline}'; "
            f"measured and able to decide: {deciding}"
        )
    if measure.better == "neither":
        raise ConfigError(
            f"compare.primary_metric: neither more nor less of '{measure.name}' is better, so it cannot decide; use one of {deciding}"
        )
    return measure, next(d for d in DECODINGS if measure.name in baseline.values.get(d, {}))


def _differences(name: str, candidate: Evaluation, baseline: Evaluation, resampling: Resampling) -> IntervalTable:
    """Paired differences on every metric that both have."""
    table: IntervalTable = {}
    for decoding, metrics in candidate.values.items():
        for metric, values in metrics.items():
            reference = baseline.values.get(decoding, {}).get(metric)
            if reference is None:
                continue
            try:
                table.setdefault(decoding, {})[metric] = values.difference(reference, resampling)
            except DataError as error:
                raise DataError(f"compare '{name}', {decoding} {metric}: {error}") from error
    return table


def _judge(difference: Interval | None, measure: Measure) -> Judgement:
    """A difference counts when its whole interval is on one side of 0, and more than one prompt stands behind it."""
    if difference is None or difference.n < 2 or difference.low <= 0.0 <= difference.high:
        return "no difference"
    return "better" if (difference.low > 0.0) == (measure.better == "higher") else "worse"


def _challenger(
    paired: Mapping[str, IntervalTable], judgements: Mapping[str, Judgement], config: CompareConfig, primary: tuple[Measure, str]
) -> tuple[str | None, str]:
    """The candidate with the largest gain among those judged better, and the reason in words."""
    measure, decoding = primary
    better = [name for name in config.named_candidates if judgements.get(name) == "better"]
    if not better:
        looked_at = ", ".join(f"{n}: {judgements[n]}" for n in config.named_candidates if n in paired) or "none was evaluated"
        return None, f"No candidate beats {config.named_baseline} on {decoding} {measure.name} beyond its interval ({looked_at})."
    best = max(better, key=lambda name: abs(paired[name][decoding][measure.name].mean))
    gain, digits = paired[best][decoding][measure.name], measure.digits
    return best, (
        f"{best} beats {config.named_baseline} on {decoding} {measure.name} by {gain.mean:+.{digits}f} "
        f"({config.confidence:.0%} interval {gain.low:+.{digits}f} to {gain.high:+.{digits}f}, {gain.n} paired prompts)."
    )
