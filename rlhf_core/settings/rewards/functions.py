"""Rewards that a function computes: the checker of the built-in task, and the user's own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlhf_core.settings.rewards.base import RewardSettings


class ProceduresReward(RewardSettings):
    """The checker of the built-in task; the label of each prompt is its policy."""

    kind: Literal["procedures"] = "procedures"


class EnvironmentReward(RewardSettings):
    """What the environment of the entry gave for each turn."""

    kind: Literal["environment"] = "environment"
    of_turns: Literal["each", "sum", "last"] = Field(
        "each",
        description="each: a turn earns its own at its last token; sum, last: the response earns that of its turns",
    )

    @property
    def of_tokens(self) -> bool:
        """With a reward for each turn."""
        return self.of_turns == "each"


class PythonReward(RewardSettings):
    """A function of the user's."""

    kind: Literal["python"] = "python"
    function: str = Field(
        description="Import path module:function; called with prompts, responses and labels, or as TRL calls its rewards. Returns for "
        "each response a number, a dict with a score, None where it does not apply, or NaN where it failed on that one: docs/rewards.md"
    )

    @property
    def modules(self) -> tuple[str, ...]:
        """The module of the function."""
        return (self.function.partition(":")[0],)
