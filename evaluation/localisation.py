"""Credit localisation: whether the unit that earns least is the step that is known to be faulty. Source: procedures.md, credit.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from data_processing.schemas import read_table
from data_processing.turns import messages_of
from evaluation.job import EvaluationJob
from evaluation.row_selection import draw_rows
from evaluation.scores import Measure, Score
from rlhf_core.batching.templates import Renderer
from rlhf_core.credit.base import Round
from rlhf_core.credit.drca import Drca
from rlhf_core.credit.segment_reward_model import SegmentScorer
from rlhf_core.credit.segments import LEAST_STD, normalised
from rlhf_core.credit.spans import spell
from rlhf_core.credit.units import content_region, labelled_token_units
from rlhf_core.models.load import load_tokenizer
from rlhf_core.rewards.base import CreditedUnit, ScoredResponse
from rlhf_core.rewards.compose import Rewards
from rlhf_core.rewards.reward_model import RewardModelScorer

LOCALISATION = Measure("localisation", "Faulty step earns least (share)", lowest=0.0, highest=1.0)
CHANCE = Measure("localisation_chance", "The same by chance", better="neither", lowest=0.0, highest=1.0)


def spoiled_rows(job: EvaluationJob) -> list[Mapping[str, Any]]:
    """The drawn pairs of the preference table's test split whose worse answer has a faulty step that is known; none without such a split."""
    path = job.data / "preference" / "test.parquet"
    if not path.is_file():
        return []
    rows = [row for row in read_table("preference", path).to_pylist() if row["detail"] and "faulty_step" in row["detail"]]
    drawn = draw_rows([row["id"] for row in rows], [""] * len(rows), job.config.max_prompts, job.seed)
    return [rows[i] for i in drawn]


def localised(job: EvaluationJob, rows: Sequence[Mapping[str, Any]], scorer: RewardModelScorer) -> list[Score]:
    """Of each row whose steps are its units, 1 where the faulty one earns least, and 1 / units; ties count by their share.

    A step earns its difference reward, or with a reward model of segments what these give its tokens.

    Rows with one unit alone, or with other units than steps, are left out.
    """
    renderer = Renderer(load_tokenizer(job.model, trust_remote_code=True))
    responses = [_spoiled(row, renderer) for row in rows]
    stops = renderer.stop_ids
    ends = [own.response_ids[-1] if own.response_ids[-1] in stops else None for own in responses]
    units: Sequence[Sequence[CreditedUnit]]
    if isinstance(scorer, SegmentScorer):
        units = _earned_by_segments(job, scorer, responses, [end is not None for end in ends], renderer)
    else:
        rewards = Rewards(list(scorer.score(responses)), {})
        given = Round(responses, rewards, ends, stops, renderer.tokenizer, None, lambda others: list(scorer.score(others)))
        units = Drca(job.config.localisation, None)(given).units
    scores: list[Score] = []
    for row, response, own in zip(rows, responses, units, strict=True):
        steps = [line for line in response.text.splitlines() if line.strip()]
        if len(own) < 2 or len(own) != len(steps):
            continue
        least = min(unit.credit for unit in own)
        lowest = [place for place, unit in enumerate(own) if unit.credit == least]
        found = (json.loads(row["detail"])["faulty_step"] in lowest) / len(lowest)
        scores += [Score(row["id"], LOCALISATION, found), Score(row["id"], CHANCE, 1 / len(own))]
    return scores


def _earned_by_segments(
    job: EvaluationJob, scorer: SegmentScorer, responses: Sequence[ScoredResponse], ended: Sequence[bool], renderer: Renderer
) -> list[list[CreditedUnit]]:
    """The labelled units of each response, with the mean over their tokens of what the token's segment earns beyond the usual."""
    assert job.reward_model is not None, "the scorer is made from it"
    settings, fit = job.config.localisation, scorer.fit(job.reward_model)
    found = []
    for response, has_end, (spans, values) in zip(responses, ended, scorer.read(responses), strict=True):
        earned = [0.0] * len(response.response_ids)
        for (start, end), value in zip(spans, normalised(values, fit, LEAST_STD), strict=True):
            earned[start:end] = [value] * (end - start)
        spelled = spell(response.response_ids, renderer.tokenizer)
        region = content_region(spelled, has_end, 0) if spelled else (0, 0)
        steps = labelled_token_units(spelled, region, 0, settings.max_units, settings.labels) if spelled else []
        found.append([CreditedUnit(start, end, fmean(earned[start:end])) for start, end in steps])
    return found


def _spoiled(row: Mapping[str, Any], renderer: Renderer) -> ScoredResponse:
    worse = "chosen" if json.loads(row["detail"])["flipped"] else "rejected"
    prompt, answer = messages_of(row, "prompt"), messages_of(row, worse)
    tokens = renderer.conversation([*prompt, *answer], last_only=True)
    start = tokens.prompt_length
    return ScoredResponse(row["id"], prompt, None, tokens.ids[:start], tokens.ids[start:], answer[-1]["content"])
