"""Each operation of the pages on credit below the response, mapped to this project's functions: plain values in, plain values out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf_core.credit.counterfactuals import in_sequence, without_unit
from rlhf_core.credit.difference import kept_at_end, unit_rewards
from rlhf_core.credit.spans import Spelled, spell_bytes
from rlhf_core.credit.units import content_region, entropy_units, label_units, labelled_token_units, thinking_end

Values = dict[str, Any]
_REMOVED = ("mask_truncate", "mask", "delete")


def _label_units(text: str, max_units: int, labels: Any) -> Values:
    spans = label_units(text, max_units, labels)
    return {"char_spans": spans, "texts": [text[start:end] for start, end in spans]}


def _token_spans(token_bytes_hex: Sequence[str]) -> Values:
    spelled = spell_bytes([bytes.fromhex(piece) for piece in token_bytes_hex])
    units = label_units(spelled.text, 10)
    return {
        "text": spelled.text,
        "token_char_spans": spelled.spans,
        "char_units": units,
        "token_units": [spelled.tokens_of(*unit) for unit in units],
    }


def _content_and_units(token_text: Sequence[str], last_token_is_eos: bool) -> Values:
    ends = [sum(map(len, token_text[: k + 1])) for k in range(len(token_text))]
    spelled = Spelled("".join(token_text), list(zip([0, *ends[:-1]], ends, strict=True)))
    start = thinking_end(spelled.text)
    region = content_region(spelled, last_token_is_eos, start)
    return {
        "content_region": region,
        "char_units": [(a + start, b + start) for a, b in label_units(spelled.text[start:], 10)],
        "token_units": labelled_token_units(spelled, region, start, 10),
    }


def _entropy_units(
    entropy_of_predicted_token: Sequence[float], content_region: tuple[int, int], threshold: float, shift: int = 0
) -> Values:
    return {"token_units": entropy_units(entropy_of_predicted_token, content_region, threshold, shift=shift)}


def _counterfactuals(
    prompt: list[int], response: list[int], units: Any, space_id: int, eos_id: int, pad_id: int | None = None
) -> dict[str, list[list[int]]]:
    return {
        mode: [[*prompt, *without_unit(response, unit, mode, space_id=space_id, eos_id=eos_id)] for unit in units]
        for mode in _REMOVED
    }


def _rewards(n_tokens: int, last: int, units: Any, full: float, without: Sequence[float], beta: float) -> list[float]:
    rewards = unit_rewards(n_tokens, units, full, without, beta=beta)
    rewards[last] += kept_at_end(units, full, beta=beta)
    return rewards


def _token_rewards(n_actions: int, eos_index: int, units: Any, r_full: float, r_masked: Sequence[float], beta: float) -> Values:
    rewards = _rewards(n_actions, eos_index, units, r_full, r_masked, beta)
    return {"difference": [r_full - worth for worth in r_masked], "token_reward": rewards, "sum": math.fsum(rewards)}


def _end_to_end(
    prompt: list[int], response: list[int], units: Any, token_weight: Mapping[str, float], beta: float, rm: str, **ids: int
) -> Values:
    def worth(row: Sequence[int]) -> float:
        return math.tanh(sum(token_weight[str(token)] * (1 + 0.1 * i) for i, token in enumerate(row)))

    full, last = worth([*prompt, *response]), len(response) - 1
    found: Values = {"r_full": full}
    for mode, rows in _counterfactuals(prompt, response, units, **ids).items():
        masked = [worth(row) for row in rows]
        rewards = _rewards(len(response), last, units, full, masked, beta)
        found[mode] = {
            "r_masked": masked,
            "difference": [full - own for own in masked],
            "token_reward": rewards,
            "sum_reward": math.fsum(rewards),
        }
    return found


def _index_layouts(prompt_len: int, left_pad: int, response_unit: tuple[int, int]) -> Values:
    sequence = in_sequence(response_unit, prompt_len, left_pad)
    return {"sequence_span": sequence, "shifted_action_span": [place - 1 for place in sequence], "response_span": response_unit}


CREDIT_OPERATIONS: dict[str, Callable[..., Values]] = {
    "drca.label_units": _label_units,
    "drca.token_spans": _token_spans,
    "drca.content_and_units": _content_and_units,
    "drca.entropy_units": _entropy_units,
    "drca.counterfactuals": _counterfactuals,
    "drca.token_rewards": _token_rewards,
    "drca.end_to_end": _end_to_end,
    "drca.index_layouts": _index_layouts,
}
