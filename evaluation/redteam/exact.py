"""P(bad) of answers of up to two tokens, by going through all of them. Source: repulse.md, section 3."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor


def bad_cases(first_V: Tensor, second_VV: Tensor, bad_ids: Collection[int]) -> tuple[float, float]:
    """log P of a bad first token, and of a bad second one behind a first that is not (nats).

    `first_V` are log-probs of the first token; row v of `second_VV` those of the second behind v. Rows of bad ones are not read.
    """
    bad = torch.zeros(len(first_V), dtype=torch.bool)
    bad[list(bad_ids)] = True
    first, second = first_V.double(), second_VV[~bad].double()
    behind = first[~bad] + torch.logsumexp(second[:, bad], dim=1)
    return float(torch.logsumexp(first[bad], 0)), float(torch.logsumexp(behind, 0))


def log_p_bad(cases: Sequence[float]) -> float:
    """log of the probability of any of cases that exclude one another (nats)."""
    most = max(cases)
    return most if most == -math.inf else most + math.log(math.fsum(math.exp(case - most) for case in cases))
