"""Answers read as plans: how much likelier they make known completions (VR-CLI). Source: vrcli.md, section 8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evaluation.job import Answer, EvaluationJob
from evaluation.logprobs import teller
from evaluation.scores import Measure, Score
from rlhf_core.credit.vr_cli.baseline import Baseline
from rlhf_core.credit.vr_cli.reward import scorer_with

IMPROVEMENT = Measure("improvement", "Improvement by the plan (% of perplexity)", digits=1)
ABOVE_ZERO = Measure("improvement.above_zero", "Plans that help (share)", lowest=0.0, highest=1.0)
EARNED = Measure("improvement.reward", "Reward of plans")
MARKED = Measure("improvement.marked", "Plans behind a marker (share)", better="neither", lowest=0.0, highest=1.0)
COPIED = Measure("improvement.copied", "Plan that stands in the completion (share)", better="neither", lowest=0.0, highest=1.0)


def improvements(job: EvaluationJob, answers: Sequence[Answer], generator: Path, baseline: Path) -> list[Score]:
    """Of each answer; one whose plan the generator cannot read has only what is told without it, and a warning says so."""
    settings = job.config.vr_cli
    scorer = scorer_with(settings, generator, Baseline.read(baseline), job.config.gpus)
    found = scorer.improved([answer.to_scored_response() for answer in answers], teller(job, "completions"))
    for note in scorer.notes:
        job.events.warn_once(note)
    scores: list[Score] = []
    for answer, each in zip(answers, found, strict=True):
        if each.percent is None:
            job.events.warn_once(f"the plan of an answer could not be read, and has no improvement: {each.failure}")
        else:
            scores += [
                Score(answer.id, IMPROVEMENT, each.percent),
                Score(answer.id, ABOVE_ZERO, float(each.percent > 0)),
                Score(answer.id, EARNED, scorer.worth(each)),
            ]
        scores += [Score(answer.id, MARKED, float(each.plan.marked)), Score(answer.id, COPIED, each.copied)]
    return scores
