"""What is measured: a table from metric name to function. Adding a metric is a function and a line in `METRICS`.

A metric function gets the job and the model's answers and returns one `Score` an answer and measure. Where its input is
absent by design it raises `NotMeasured`, and the evaluation goes on without it; where it cannot apply, `ConfigError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np

from data_processing.procedures.checker import check
from data_processing.procedures.faults import procedure_faults
from data_processing.procedures.policy import is_policy
from evaluation.config import Metric
from evaluation.improvement import improvements
from evaluation.job import Answer, EvaluationJob
from evaluation.localisation import localised, spoiled_rows
from evaluation.logprobs import check_same_tokens, teller, token_logprobs
from evaluation.row_reading import read_held_out
from evaluation.scores import Measure, Score
from rlhf_core.credit.reward_model_folder import reward_model_scorer
from rlhf_core.rewards.reward_model import RewardModelScorer
from rlhf_core.settings.training import Packing

PROCEDURES = {
    "score": Measure("procedures.score", "Procedures score (0 to 1)", lowest=0.0, highest=1.0),
    "valid": Measure("procedures.valid", "Valid procedures (share)", lowest=0.0, highest=1.0),
    "accuracy": Measure("procedures.accuracy", "Cases decided right (share)", lowest=0.0, highest=1.0),
    "soundness": Measure("procedures.soundness", "Soundness (share)", lowest=0.0, highest=1.0),
    "efficiency": Measure("procedures.efficiency", "Efficiency (share of the optimum)", lowest=0.0, highest=1.0),
}
REWARD = Measure("reward", "Reward model score")
BAD = Measure("reward.bad", "Bad answers (share)", better="lower", digits=4, lowest=0.0, highest=1.0)
KL = Measure("kl", "KL to the base (nats a response)", better="neither", digits=1)
KL_PER_TOKEN = Measure("kl_per_token", "KL to the base (nats a token)", better="neither", digits=3)
LENGTH = Measure("length", "Length (tokens)", better="neither", digits=0, lowest=0.0)
TRUNCATED = Measure("truncated", "Cut at the length limit (share)", better="lower", lowest=0.0, highest=1.0)
PERPLEXITY = Measure("perplexity", "Perplexity of held-out answers", better="lower", geometric=True)


class NotMeasured(Exception):
    """The metric has nothing to measure here; the message says what is absent."""


MetricFunction = Callable[[EvaluationJob, Sequence[Answer]], list[Score]]


def procedures(job: EvaluationJob, answers: Sequence[Answer]) -> list[Score]:
    """The checker's five shares for each answer whose prompt is labelled with a policy; faults beside the score."""
    scores: list[Score] = []
    for answer in answers:
        label = answer.prompt.label
        if label is None or not is_policy(label):
            continue
        shares = asdict(check(label, answer.text))
        faults = procedure_faults(label, answer.text)
        for name, measure in PROCEDURES.items():
            scores.append(Score(answer.id, measure, shares[name], faults=faults if name == "score" else ()))
    if not scores:
        raise NotMeasured("no test prompt is labelled with a procedures policy")
    return scores


def reward(job: EvaluationJob, answers: Sequence[Answer]) -> list[Score]:
    """The reward model's score of each answer, and whether it is below what the settings call bad."""
    scorer = _scorer(job)
    # Answers to one prompt after the other, so that it is computed once for them.
    ordered = sorted(answers, key=lambda answer: answer.prompt.id)
    values = scorer.score([answer.to_scored_response() for answer in ordered], teller(job, "reward model scores"))
    scores = [Score(answer.id, REWARD, value) for answer, value in zip(ordered, values, strict=True)]
    if (limit := job.config.bad_below) is None:
        return scores
    bad = [Score(score.answer_id, BAD, float(score.value < limit)) for score in scores]
    if not any(score.value for score in bad):
        lowest = ", ".join(f"{value:.3g}" for value in np.quantile(values, (0.0, 0.01, 0.1)))
        job.events.warn(
            f"no answer is worth less than evaluate.bad_below={limit:g}: the lowest is worth, and the lowest 1% and 10% are below, {lowest}; "
            "sample more, or raise it"
        )
    return scores + bad


def _scorer(job: EvaluationJob) -> RewardModelScorer:
    if job.reward_model is None:
        raise NotMeasured("this run has no reward model")
    scorer = reward_model_scorer(
        job.reward_model,
        job.model,
        dtype=job.config.precision,
        attention="auto",
        micro_batch_tokens=job.config.micro_batch_tokens,
        packing=Packing.auto,
        gpus=job.config.gpus,
        trust_remote_code=True,
    )
    for note in scorer.notes:
        job.events.warn_once(note)
    return scorer


def kl(job: EvaluationJob, answers: Sequence[Answer]) -> list[Score]:
    """KL of the model to the base (k1, nats) on the sampled answers, at the temperature that sampled them.

    Greedy answers are left out: they are no samples of the model, so log-ratios on them do not estimate a divergence.
    """
    check_same_tokens(job.model, job.base)
    sampled = [answer for answer in answers if answer.decoding == "sampled"]
    rows = [answer.row for answer in sampled]
    # The base comes first: the model that is measured stays loaded for what follows.
    theirs = token_logprobs(job, job.base, rows, job.config.temperature)
    # The base against itself: the same folder gives the same numbers, so they are not computed twice.
    ours = theirs if job.model.samefile(job.base) else token_logprobs(job, job.model, rows, job.config.temperature)
    scores: list[Score] = []
    for answer, model_logprobs, base_logprobs in zip(sampled, ours, theirs, strict=True):
        nats, tokens = float((model_logprobs.double() - base_logprobs.double()).sum()), len(model_logprobs)
        scores += [Score(answer.id, KL, nats), Score(answer.id, KL_PER_TOKEN, nats / tokens, weight=tokens)]
    return scores


def length(job: EvaluationJob, answers: Sequence[Answer]) -> list[Score]:
    """Tokens of each answer (the stop token counts), and whether it was cut at `max_new_tokens`."""
    lengths = [Score(answer.id, LENGTH, len(answer.response_ids)) for answer in answers]
    return lengths + [Score(answer.id, TRUNCATED, float(answer.finish_reason == "length")) for answer in answers]


def perplexity(job: EvaluationJob, answers: Sequence[Answer]) -> list[Score]:
    """exp of the mean negative log-likelihood a target token of the drawn rows of the sft test split that fit the model."""
    held_out = read_held_out(job)
    if not held_out:
        raise NotMeasured("the data has no test split of the sft table")
    logprobs = token_logprobs(job, job.model, [row for _, row in held_out])
    return [_row_perplexity(name, values.double().tolist()) for (name, _), values in zip(held_out, logprobs, strict=True)]


def localisation(job: EvaluationJob, answers: Sequence[Answer]) -> list[Score]:
    """Whether difference rewards find the faulty step of spoiled procedures, beside chance; nothing is generated for it."""
    rows = spoiled_rows(job)
    if not rows:
        raise NotMeasured("the data has no held-out pairs whose faulty step is known")
    scores = localised(job, rows, _scorer(job))
    if not scores:
        raise NotMeasured(f"none of {len(rows)} held-out pairs has several steps that are told apart as units")
    return scores


def improvement(job: EvaluationJob, answers: Sequence[Answer]) -> list[Score]:
    """How much likelier each answer, read as a plan, makes the completion of its prompt."""
    if job.generator is None or job.baseline is None:
        raise NotMeasured("this run has no baseline of completions (an entry of stage vr_cli_baseline)")
    return improvements(job, answers, job.generator, job.baseline)


METRICS: Mapping[Metric, MetricFunction] = {
    "procedures": procedures,
    "reward": reward,
    "kl": kl,
    "length": length,
    "perplexity": perplexity,
    "localisation": localisation,
    "improvement": improvement,
}


def _row_perplexity(row_id: str, logprobs: Sequence[float]) -> Score:
    # Beyond 700 nats a token exp overflows; no model that was ever trained comes near.
    nats_a_token = min(-sum(logprobs) / max(len(logprobs), 1), 700.0)
    return Score(row_id, PERPLEXITY, math.exp(nats_a_token), weight=len(logprobs))
