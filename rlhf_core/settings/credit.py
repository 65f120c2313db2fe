"""Settings of where the reward of a response goes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from data_processing.settings import Settings, drawn_as_choice
from rlhf_core.settings.segments import SegmentMode

Labels = Literal["letters+digits", "letters"]
ThinkMode = Literal["exclude", "unit", "include"]
Counterfactual = Literal["mask_truncate", "mask", "delete", "mask_attention"]


class CreditSettings(Settings):
    """Where the reward of a response goes: its `kind` says which, and has the settings that only it reads."""

    kind: str = Field(description="What spreads the reward of a response over its tokens")

    @property
    def modules(self) -> tuple[str, ...]:
        """The user's modules that it runs."""
        return ()


class OutcomeCredit(CreditSettings):
    """All of it at the last token; rewards of single tokens, where sources give some, at theirs."""

    kind: Literal["outcome"] = "outcome"


class ProcessCredit(CreditSettings):
    """The same, in a run whose rewards are to be those of steps or turns: refused where no source gives rewards of tokens."""

    kind: Literal["process"] = "process"


class DrcaCredit(CreditSettings):
    """Difference rewards: a unit of the response gets what the response is worth less what it is worth without the unit."""

    kind: Literal["drca"] = "drca"
    beta: float = Field(
        0.8, ge=0.0, le=1.0, description="Share of the credit that goes to the units; the rest stays at the last token"
    )
    unit_extraction: Literal["regex", "entropy"] = Field(
        "regex",
        description="regex: a unit from each label at the start of a line (A. or 1.) to the next; entropy: from each token drawn with much entropy",
    )
    labels: Labels = Field("letters+digits", description="Labels that open a unit")
    max_units: int = Field(
        10, ge=1, description="Units of a response at most; the last runs to the end. Each is one more reward pass"
    )
    entropy_threshold_nats: float = Field(1.5, ge=0.0, description="A token drawn with more entropy opens a unit")
    entropy_shift: int = Field(0, ge=0, le=1, description="1: the token behind it opens the unit, as first published")
    counterfactual: Counterfactual = Field(
        "mask_truncate",
        description="The response without a unit. mask_truncate: blanks instead, and nothing behind; mask: blanks; delete: closed up; "
        "mask_attention: as it is, and the reward model does not attend to the unit",
    )
    think_mode: ThinkMode = Field(
        "exclude", description="What is thought before the answer is in no unit, is the first one, or is part of the answer"
    )
    think_tags: tuple[str, str] = Field(("<think>", "</think>"), description="What thinking stands between")
    mask_token_id: int | None = Field(None, ge=0, description="Token that blanks a unit; null: the one that is a space")

    @field_validator("think_tags", mode="before")
    @classmethod
    def _two_tags(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class SegmentCredit(CreditSettings):
    """What a reward model of segments (granularity: segment) says of each, less what is usual where it stands, goes to its tokens."""

    kind: Literal["segment"] = "segment"
    mode: SegmentMode = Field(
        "segment_normalization",
        description="segment_normalization: evenly over a segment's tokens; same_segment_last: all of it at each of them; every_segment_last: at "
        "its last; segment_last_avg, segment_last_logsumexp: one number at the response's last token",
    )
    normalize: bool = Field(
        True,
        description="Less the mean and by the deviation: those of the position where tokens are rewarded, else those of responses",
    )
    allow_missing_fit: bool = Field(False, description="Take rewards as they are where the reward model has no fit by position")
    std_floor: float = Field(
        0.1, gt=0.0, description="Least deviation that is divided by: a fit may go below 0 early in a response"
    )
    length_norm: bool = Field(False, description="Divide the rewards of tokens by the response's length, its end among them")
    logsumexp_tau: float = Field(1.0, gt=0.0, description="Temperature of segment_last_logsumexp")
    penalty: float = Field(-0.05, description="What a response gets instead of its reward, where one of the next two holds")
    no_eos_penalty: bool = Field(False, description="It holds where a response does not end")
    length_penalty_limit: int | None = Field(
        None, ge=1, description="It holds where a response has more tokens, its end among them; null: no limit"
    )


class OwnCredit(CreditSettings):
    """A class of the user's (docs/credit.md)."""

    kind: Literal["own"] = "own"
    by: str = Field(description="Import path module:Class")
    options: dict[str, Any] = Field(default_factory=dict, description="Arguments that it is made with")

    @property
    def modules(self) -> tuple[str, ...]:
        """Its module."""
        return (self.by.partition(":")[0],)


def _named(value: Any) -> Any:
    """The name of a kind stands for it with its defaults."""
    return {"kind": value} if isinstance(value, str) else value


CreditSource = Annotated[
    Annotated[
        OutcomeCredit | ProcessCredit | DrcaCredit | SegmentCredit | OwnCredit,
        Field(discriminator="kind", json_schema_extra=drawn_as_choice),
    ],
    BeforeValidator(_named),
]
