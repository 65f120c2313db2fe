"""Each operation of the page on VR-CLI, mapped to this project's functions: plain values in, plain values out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from data_processing.config import StoryOptions
from data_processing.sources.stories import left_out_for, words
from rlhf_core.credit.vr_cli.completions import Nll, Record, scored_span
from rlhf_core.credit.vr_cli.improvement import improvement_percent, improvement_reward, perplexity
from rlhf_core.credit.vr_cli.plans import extract_plan
from rlhf_core.credit.vr_cli.record_id import record_id
from rlhf_core.objectives.advantages import group_advantages
from rlhf_core.objectives.aggregation import aggregate
from rlhf_core.objectives.kl import kl_estimate
from rlhf_core.objectives.logprobs import token_logprobs
from rlhf_core.objectives.policy import ppo_loss
from rlhf_core.settings.rewards.vr_cli import VrCliReward

Values = dict[str, Any]
_DEFAULTS = VrCliReward()
_MODES = ("thresholds", "binary", "positive_part", "negative_part", "raw", "positive_fraction")


def _nll(logits: Any, input_ids: Sequence[int], gold_span: Sequence[int]) -> Nll:
    start, end = gold_span
    rows = torch.tensor(logits, dtype=torch.float64)[start - 1 : end - 1]
    logprobs, _ = token_logprobs(rows, torch.tensor(input_ids[start:end]))
    return Nll(-math.fsum(logprobs.tolist()), end - start)


def _completion_nll(logits: Any, input_ids: Sequence[int], gold_span: Sequence[int]) -> Values:
    nll = _nll(logits, input_ids, gold_span)
    return {"nll_sum": nll.total_nats, "n_tokens": nll.n_tokens, "mean_nll": nll.mean, "ppl": perplexity(nll.mean)}


def _improvement(logits_baseline: Any, logits_with_plan: Any, input_ids: Any, gold_span: Any) -> Values:
    baseline, plan = (_nll(logits, input_ids, gold_span).mean for logits in (logits_baseline, logits_with_plan))
    percent = improvement_percent(baseline, plan)
    return {
        "ppl_baseline": perplexity(baseline),
        "ppl_with_plan": perplexity(plan),
        "improvement_pct": percent,
        "improvement_pct_from_log_ratio": percent,
        "reward": _worth(percent, "thresholds"),
    }


def _worth(percent: float, mode: Any) -> float:
    return improvement_reward(percent, mode, _DEFAULTS.cuts_percent, _DEFAULTS.levels)


def _reward_modes(pairs: Any) -> Values:
    rows = []
    for baseline, plan in pairs:
        percent = 100 * (baseline - plan) / baseline  # the definition: its edges are exact, those of logarithms are not
        told = {"baseline_ppl": baseline, "policy_ppl": plan, "improvement_pct": percent}
        rows.append({**told, **{mode: _worth(percent, mode) for mode in _MODES}})
        assert math.isclose(improvement_percent(math.log(baseline), math.log(plan)), percent, abs_tol=1e-9)
    return {"rows": rows}


def _plans(responses: Sequence[str]) -> Values:
    return {"plans": [extract_plan(text, _DEFAULTS.markers, require_marker=False).text for text in responses]}


def _group_advantages(rewards: Any, eps: float) -> Values:
    assert math.isclose(eps, 1e-9, rel_tol=1e-6)
    return {"advantage": group_advantages(torch.tensor(rewards, dtype=torch.float64), "group_norm").tolist()}


def _grpo_loss(logp: Any, old_logp: Any, ref_logp: Any, advantage: Any, mask: Any, clip: float, kl_coef: float) -> Values:
    ours, old, reference, counted = (torch.tensor(rows, dtype=torch.float64) for rows in (logp, old_logp, ref_logp, mask))
    advantages: Tensor = torch.tensor(advantage, dtype=torch.float64)[:, None].expand_as(ours)
    policy = aggregate(ppo_loss(ours, old, advantages, counted, clip_low=clip, clip_high=clip).losses, counted, "sequence_mean")
    kl = aggregate(kl_estimate(ours, reference, "k3", counted), counted, "sequence_mean")
    return {"policy_loss": policy.item(), "kl_k3": kl.item(), "loss": (policy + kl_coef * kl).item()}


def _record_id(messages_a: Any, messages_b: Any) -> Values:
    record = Record(messages_a[:-1], messages_a[-1]["content"])
    assert record.id == record_id(messages_a)
    return {
        "id_a": record_id(messages_a),
        "id_b": record_id(messages_b),
        "gold_a": record.completion,
        "context_len": len(record.asked),
    }


def _evaluation_metrics(rows: Any, shards: Any) -> Values:
    # All answers are in one table, however they were computed, so a mean is over all of them.
    own = [rows[i] for shard in shards for i in shard]
    means = {name: math.fsum(row[name] for row in own) / len(own) for name in ("reward", "pct", "len")}
    return {
        "eval_reward": means["reward"],
        "eval_pct_improvement": means["pct"],
        "eval_response_length": means["len"],
        "n": len(own),
        "eval_frac_positive": math.fsum(row["pct"] > 0 for row in own) / len(own),
    }


def _scored_span(prompt_ids: Any, gold_ids: Any, eot_id: int, score: Any) -> Values:
    content, with_end = (scored_span(prompt_ids, gold_ids, eot_id, [], span) for span in score)
    return {
        "input_ids": with_end.ids,
        "span_content": [content.start, len(content.ids)],
        "span_content_eot": [with_end.start, len(with_end.ids)],
    }


def _story_filters(next_words: Any, prev_words: Any, prompt_words: Any, chapter_index: Any) -> Values:
    options = StoryOptions()
    columns = zip(next_words, prev_words, prompt_words, chapter_index, strict=True)
    return {
        "keep": [left_out_for(*counts, options) is None for counts in columns],
        "word_count_example": words("a few words and  two"),
    }


# Steps between levels, with cases at their very edges: perplexities and improvements are in fp64 wherever they are computed.
FP64_OPERATIONS = frozenset({"vrcli.reward_modes", "vrcli.reward_thresholds"})
VR_CLI_OPERATIONS: dict[str, Callable[..., Values]] = {
    "vrcli.completion_nll": _completion_nll,
    "vrcli.improvement": _improvement,
    "vrcli.reward_modes": _reward_modes,
    "vrcli.reward_thresholds": lambda improvement_pct: {"reward": [_worth(value, "thresholds") for value in improvement_pct]},
    "vrcli.plan_extraction": _plans,
    "vrcli.group_advantages": _group_advantages,
    "vrcli.grpo_loss": _grpo_loss,
    "vrcli.record_id": _record_id,
    "vrcli.evaluation_metrics": _evaluation_metrics,
    "vrcli.scored_span": _scored_span,
    "vrcli.story_filters": _story_filters,
}
