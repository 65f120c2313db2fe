"""Settings of where the reward of a response goes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from data_processing.settings import Settings, drawn_as_choice

Labels = Literal["letters+digits", "letters"]
ThinkMode = Literal["exclude", "unit", "include"]
Counterfactual = Literal["mask_truncate", "mask", "delete"]


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
        description="The response without a unit. mask_truncate: blanks instead, and nothing behind; mask: blanks; delete: closed up",
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
        OutcomeCredit | ProcessCredit | DrcaCredit | OwnCredit, Field(discriminator="kind", json_schema_extra=drawn_as_choice)
    ],
    BeforeValidator(_named),
]
