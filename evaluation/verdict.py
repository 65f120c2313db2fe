"""Models against each other on the same prompts: paired differences, a verdict, and the challenger.

Reads evaluation artifacts only; knows no model and no torch. The decoding that decides is the first of
`scores.DECODINGS` in which the primary metric exists: sampled answers, unless the metric needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data_processing.errors import ConfigError, DataError
from evaluation.bootstrap import Draws, Resampling
from evaluation.config import PRIMARY_METRICS, CompareConfig
from evaluation.evaluation_artifact import Evaluation, IntervalTable, intervals_json
from evaluation.scores import DECODINGS, Measure
from evaluation.significance import Judged, Judgement, judge

# Draws of paired differences: `{decoding: {metric: ...}}`.
DrawsTable = dict[str, dict[str, Draws]]


@dataclass(frozen=True)
class Comparison:
    """Every model's statistics, its paired differences against the baseline, and who may become challenger."""

    models: Mapping[str, IntervalTable]
    paired: Mapping[str, IntervalTable]
    judged: Mapping[str, Judged]
    min_prompts: int
    challenger: str | None
    reason: str
    primary_metric: str
    decoding: str
    baseline: str

    @property
    def judgements(self) -> dict[str, Judgement]:
        """How each model stands to the baseline."""
        return {name: judged.judgement for name, judged in self.judged.items()}

    def to_json(self) -> dict[str, Any]:
        """The content of `verdict.json`."""
        return {
            "models": {name: intervals_json(table) for name, table in self.models.items()},
            "paired": {name: intervals_json(table) for name, table in self.paired.items()},
            "judgements": self.judgements,
            "tests": {name: judged.to_json() for name, judged in self.judged.items()},
            "min_prompts": self.min_prompts,
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
    resampling = Resampling(resamples=config.resamples, confidence=config.confidence, seed=seed)
    differences = {
        name: _differences(name, other, baseline, resampling) for name, other in evaluations.items() if other is not baseline
    }
    deciding = {
        name: table[decoding][measure.name] for name, table in differences.items() if measure.name in table.get(decoding, {})
    }
    judged = judge(deciding, measure.better, config.named_candidates, config)
    for name in config.named_candidates:
        if name not in differences:
            warn(f"candidate '{name}' was not evaluated and is left out; evaluated: {sorted(evaluations)}")
    challenger, reason = _challenger(deciding, judged, config, (measure, decoding))
    return Comparison(
        models={name: evaluation.intervals(resampling) for name, evaluation in evaluations.items()},
        paired={name: _intervals(table, config.confidence) for name, table in differences.items()},
        judged=judged,
        min_prompts=config.min_prompts,
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


def _differences(name: str, candidate: Evaluation, baseline: Evaluation, resampling: Resampling) -> DrawsTable:
    """Paired differences on every metric that both have."""
    table: DrawsTable = {}
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


def _intervals(table: DrawsTable, confidence: float) -> IntervalTable:
    return {
        decoding: {metric: draws.interval(confidence) for metric, draws in metrics.items()} for decoding, metrics in table.items()
    }


def _challenger(
    differences: Mapping[str, Draws], judged: Mapping[str, Judged], config: CompareConfig, primary: tuple[Measure, str]
) -> tuple[str | None, str]:
    """The candidate with the largest gain among those judged better, and the reason in words."""
    measure, decoding = primary
    compared = [name for name in config.named_candidates if name in judged]
    better = [name for name in compared if judged[name].judgement == "better"]
    if not better:
        return None, _why_none(judged, compared, config, primary)
    best = max(better, key=lambda name: abs(float(differences[name].mean[0])))
    gain, digits = differences[best].interval(config.confidence), measure.digits
    corrected = f", corrected for {len(compared)} candidates" if len(compared) > 1 else ""
    return best, (
        f"{best} beats {config.named_baseline} on {decoding} {measure.name} by {gain.mean:+.{digits}f} "
        f"({config.confidence:.0%} interval {gain.low:+.{digits}f} to {gain.high:+.{digits}f}, {gain.n} paired prompts; "
        f"p = {judged[best].corrected_p:.2g}{corrected})."
    )


def _why_none(judged: Mapping[str, Judged], compared: list[str], config: CompareConfig, primary: tuple[Measure, str]) -> str:
    measure, decoding = primary
    n = min((judged[name].n for name in compared), default=config.min_prompts)
    if n < config.min_prompts:
        return (
            f"Too few prompts: {n} of {config.min_prompts} needed for a verdict on {decoding} {measure.name}; "
            "raise evaluate.max_prompts or give the test split more rows."
        )
    looked_at = ", ".join(f"{name}: {judged[name].judgement}" for name in compared) or "none was evaluated"
    sizes = [size for name in compared if (size := judged[name].detectable) is not None]
    detectable = f" A gain of {max(sizes):.{measure.digits}f} would have been found 4 times in 5." if sizes else ""
    return f"No candidate beats {config.named_baseline} on {decoding} {measure.name} beyond chance ({looked_at}).{detectable}"
