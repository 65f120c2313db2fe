"""Rewards that are checked, not judged: against the prompt's label, a pattern, a schema, or constraints that its row names."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rlhf_core.settings.rewards.base import RewardSettings

AUTO = "auto"


class _AnswerReward(RewardSettings):
    """A kind that looks at the answer in a response, not at all of it."""

    answer: str = Field(
        AUTO,
        min_length=1,
        description="Where the answer is: auto (the last of <answer>, \\boxed{}, '#### x', 'Answer: x', 'The answer is x'; without one "
        "what the kind says), or a regular expression with one group, whose last match counts",
    )

    @field_validator("answer")
    @classmethod
    def _has_one_group(cls, value: str) -> str:
        if value != AUTO and (groups := _groups(value)) != 1:
            raise ValueError(f"answer={value!r} has {groups} groups, and the answer is one: mark others with (?:...)")
        return value


class ExactReward(_AnswerReward):
    """1 where the answer is the label, white space folded and in Unicode's normal form C."""

    kind: Literal["exact"] = "exact"
    ignore_case: bool = Field(False, description="Take capital and small letters for the same")


class NumericReward(_AnswerReward):
    """1 where the answer is the label's number, whatever both are written like."""

    kind: Literal["numeric"] = "numeric"
    relative_tolerance: float = Field(1e-9, ge=0.0, lt=1.0, description="How far the answer may be off, as a share of the label")
    absolute_tolerance: float = Field(0.0, ge=0.0, description="How far it may be off in any case, in the label's unit")
    units: bool = Field(True, description="Read units, and convert the answer's to the label's; false: a number is a number")
    unit_may_be_missing: bool = Field(True, description="Where the label has a unit, an answer without one is in that unit")

    @property
    def libraries(self) -> tuple[str, ...]:
        """Those that check."""
        return ("pint",)


class MathReward(_AnswerReward):
    """1 where math-verify finds the answer equal to the label: LaTeX, expressions, sets, intervals, equations."""

    kind: Literal["math"] = "math"
    limit_s: float = Field(5.0, gt=0.0, description="Seconds for one comparison; an answer that takes longer is worth 0")

    @property
    def libraries(self) -> tuple[str, ...]:
        """Those that check."""
        return ("math-verify", "latex2sympy2_extended", "sympy")


class ChoiceReward(_AnswerReward):
    """1 where the answer names the option that the label names, by its letter or by its text."""

    kind: Literal["choice"] = "choice"
    choices: str = Field(
        "choices", description="Column of the prompts with the texts of the options, in order; letters alone where it is absent"
    )


class RegexReward(RewardSettings):
    """1 where a pattern is found in the response, what stands in <think> included; needs no label."""

    kind: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1, description="A regular expression, of the regex library; flags as (?s) in front")
    whole: bool = Field(False, description="It must match all of the response, but white space around it")
    limit_s: float = Field(1.0, gt=0.0, description="Seconds for one response; one that takes longer is worth 0")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        _groups(value)
        return value

    @property
    def libraries(self) -> tuple[str, ...]:
        """Those that check."""
        return ("regex",)


class JsonSchemaReward(RewardSettings):
    """1 where the response, or its last fenced block, is JSON that is valid under a schema."""

    kind: Literal["json_schema"] = "json_schema"
    json_schema: dict[str, Any] | None = Field(None, description="The schema; null: each prompt's row has its own")
    column: str = Field("json_schema", description="Column with the schema of a row, where none is given here")

    @property
    def libraries(self) -> tuple[str, ...]:
        """Those that check."""
        return ("jsonschema",)


class LengthReward(RewardSettings):
    """1 for responses of the right length, less for others."""

    kind: Literal["length"] = "length"
    min_tokens: int = Field(0, ge=0, description="Tokens from which on a response is worth 1")
    max_tokens: int = Field(ge=1, description="Tokens up to which it is")
    buffer_tokens: int = Field(
        0, ge=0, description="Tokens outside of these within which the reward falls in a straight line to 0"
    )

    @model_validator(mode="after")
    def _in_order(self) -> LengthReward:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens={self.min_tokens} is above max_tokens={self.max_tokens}: swap them")
        return self


class InstructionsReward(RewardSettings):
    """The share of the constraints of a row in the form of IFEval that a response keeps."""

    kind: Literal["instructions"] = "instructions"
    all_of_them: bool = Field(False, description="1 where all are kept, else 0")


class ReasoningGymReward(_AnswerReward):
    """What reasoning-gym itself says of the answer to one of its questions."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    limit_s: float = Field(10.0, gt=0.0, description="Seconds for one answer; one that takes longer to check is worth 0")

    @property
    def libraries(self) -> tuple[str, ...]:
        """Those that check."""
        return ("reasoning-gym", "sympy")


def _groups(pattern: str) -> int:
    """How many groups it has; `ValueError` where it is no regular expression."""
    import regex

    try:
        return int(regex.compile(pattern).groups)
    except regex.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}; correct it") from error
