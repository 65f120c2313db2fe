"""The `comparison` artifact: verdict, what the report shows of it, and a report that needs no run around it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.bootstrap import Resampling
from evaluation.config import CompareConfig
from evaluation.evaluation_artifact import Evaluation, Row, read_evaluation, write_json
from evaluation.report.data import assemble
from evaluation.report.page import write_report
from evaluation.scores import HELD_OUT
from evaluation.seeds import family, folded
from evaluation.verdict import Comparison, compare
from rlhf_core.events import EventLog


def write_comparison(inputs: Mapping[str, Path], config: CompareConfig, output: Path, seed: int, events: EventLog) -> Comparison:
    """Compare the evaluation artifacts in `inputs` (by model name) and write the comparison artifact into `output`.

    `verdict.json` is `Comparison.to_json`; `report_data.json` adds the measures and the samples that the report shows.
    """
    apart = {name: read_evaluation(folder) for name, folder in inputs.items()}
    evaluations = folded(apart, config.seeds)
    comparison = compare(evaluations, config, seed, events.warn)
    primary = comparison.decoding, comparison.primary_metric
    families = {
        name: family({m: apart[m] for m in members}, primary, config.confidence) for name, members in config.seeds.items()
    }
    verdict = comparison.to_json() | {"seeds": {name: found.to_json() for name, found in families.items()}}
    measures = {name: m.to_json() for evaluation in evaluations.values() for name, m in evaluation.measures.items()}
    shown = {
        "verdict": verdict,
        "measures": measures,
        "samples": side_by_side(evaluations, comparison, config),
        "confidence": config.confidence,
        "rows": evaluations[comparison.baseline].counts,
        "sources": by_source(evaluations, comparison, config, seed),
    }
    write_json(output / "verdict.json", verdict)
    write_json(output / "report_data.json", shown)
    write_report(assemble(output, {}, "", (), ()), output / "report.html")
    events.summary({"challenger": comparison.challenger, "reason": comparison.reason, **_gains(comparison)})
    return comparison


def by_source(
    evaluations: Mapping[str, Evaluation], comparison: Comparison, config: CompareConfig, seed: int
) -> dict[str, dict[str, Any]]:
    """`{source: {model: interval}}` of the metric that decides, over the prompts of each source."""
    resampling = Resampling(resamples=config.bootstrap_resamples, confidence=config.confidence, seed=seed)
    table: dict[str, dict[str, Any]] = {}
    for name, evaluation in evaluations.items():
        values = evaluation.values.get(comparison.decoding, {}).get(comparison.primary_metric)
        for source, prompts in evaluation.prompts_of_source.items():
            if values is not None and (part := values.of(prompts)) is not None:
                table.setdefault(source, {})[name] = part.interval(resampling).to_json()
    return table


def side_by_side(evaluations: Mapping[str, Evaluation], comparison: Comparison, config: CompareConfig) -> list[dict[str, Any]]:
    """Prompts with the first answer of every model, evenly chosen from the largest gain to the largest loss.

    The gain is the challenger's over the baseline, or the first candidate's where there is no challenger.
    """
    decoding = "sampled" if comparison.decoding == HELD_OUT else comparison.decoding
    answers = {name: _first_answers(evaluation, decoding) for name, evaluation in evaluations.items()}
    prompts = _spread(_by_gain(evaluations, comparison, config, list(answers[comparison.baseline])), config.samples_shown)
    return [
        {
            "prompt": answers[comparison.baseline][prompt]["prompt"],
            "answers": [
                _answer(name, rows[prompt], evaluations[name], comparison.primary_metric)
                for name, rows in answers.items()
                if prompt in rows
            ],
        }
        for prompt in prompts
    ]


def _first_answers(evaluation: Evaluation, decoding: str) -> dict[str, Row]:
    """Prompt id -> the first prediction with that decoding."""
    found: dict[str, Row] = {}
    for row in evaluation.predictions:
        if row["decoding"] == decoding:
            found.setdefault(row["prompt_id"], row)
    return found


def _by_gain(
    evaluations: Mapping[str, Evaluation], comparison: Comparison, config: CompareConfig, prompts: list[str]
) -> list[str]:
    """Prompt ids from the largest gain to the largest loss; as given where prompts have no value of the primary metric."""
    compared = [name for name in config.named_candidates if name in evaluations]
    best = comparison.challenger or (compared[0] if compared else comparison.baseline)
    ours, theirs = (evaluations[name].values.get(comparison.decoding, {}) for name in (best, comparison.baseline))
    metric = comparison.primary_metric
    if metric not in ours or not set(prompts) <= set(ours[metric].units):
        return prompts
    sign = 1.0 if evaluations[best].measures[metric].better == "higher" else -1.0
    differences = sign * (ours[metric].values - theirs[metric].values)
    gain = dict(zip(ours[metric].units, differences.tolist(), strict=True))
    return sorted(prompts, key=lambda prompt: -gain[prompt])


def _spread(items: Sequence[str], count: int) -> list[str]:
    """At most `count` items at even distances, the first and the last among them."""
    if count >= len(items):
        return list(items)
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]


def _answer(name: str, row: Row, evaluation: Evaluation, primary_metric: str) -> dict[str, Any]:
    scores = evaluation.scores_by_answer.get(row["id"], [])
    details = [json.loads(score["detail"]) for score in scores if score["detail"]]
    values = {score["metric"]: score["value"] for score in scores}
    return {
        "model": name,
        "text": row["response"],
        "finish_reason": row["finish_reason"],
        "tokens": row["response_tokens"],
        "score": values.get(primary_metric),
        "scores": values,
        "faults": [fault for detail in details for fault in detail.get("faults", [])],
    }


def _gains(comparison: Comparison) -> dict[str, float]:
    """The paired difference of each model on the metric that decides, for trackers."""
    tables = {name: table.get(comparison.decoding, {}) for name, table in comparison.paired.items()}
    metric = comparison.primary_metric
    return {f"{name}_minus_{comparison.baseline}": table[metric].mean for name, table in tables.items() if metric in table}
