"""Settings of segments: how a reward model reads them, and how what they earn is spread."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data_processing.settings import Settings

SegmentMode = Literal[
    "segment_normalization", "same_segment_last", "every_segment_last", "segment_last_avg", "segment_last_logsumexp"
]
# They reward tokens; the others give one number.
DENSE_MODES = frozenset({"segment_normalization", "same_segment_last", "every_segment_last"})


class SegmentSettings(Settings):
    """How a reward model of segments reads a response (docs/credit.md)."""

    threshold_nats: float = Field(
        1.5,
        ge=0.0,
        description="A token predicted with more entropy opens a segment; 0: each token is one; from 1000 on: the whole response is",
    )
    entropy_coef: float = Field(
        0.02, ge=0.0, description="Weight of the entropy of a response's credit, which is made large; 0: Bradley-Terry alone"
    )
    credit_tau: float = Field(1.0, gt=0.0, description="Temperature of the credit, softmax of segment rewards")
    normalize_by_log_k: bool = Field(False, description="Divide the entropy of K segments by log K")
    segment_from: Literal["response", "content"] = Field(
        "response", description="content: segments begin behind what is thought before the answer"
    )
    fit_pairs: int = Field(
        60_000, ge=1, description="Training pairs at most whose segment rewards the fit by position is made from"
    )
    fit_min_count: int = Field(1, ge=1, description="Positions with fewer segments are left out of the fit")
    fit_weight_by_count: bool = Field(False, description="Positions weigh in the fit as many segments as they have")
