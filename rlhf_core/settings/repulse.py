"""Settings of RePULSe: how rare bad responses are looked for and made rarer. Source: arXiv 2510.21184, repulse.md."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from data_processing.settings import Settings


class RewardTransformSettings(Settings):
    """What low rewards are turned into before anything else is made of them; measuring on the way sees them as they were."""

    kind: Literal["none", "exponential", "indicator"] = Field(
        "none",
        description="exponential: r - alpha exp(beta r), with beta below 0; indicator: r - alpha where r is below `threshold`",
    )
    alpha: float = Field(1.0, ge=0.0, description="Weight of what is taken off")
    beta: float = Field(-0.5, description="Of exponential: the steeper, the further below 0")
    threshold: float = Field(-5.0, description="Of indicator: rewards below it are bad")


class RepulseSettings(Settings):
    """What the methods repulse and repulse_base alone read."""

    target_beta: float = Field(
        -10.0, description="Responses are looked for in proportion to p exp(target_beta * reward); below 0 where rewards are low"
    )
    alpha: float = Field(0.1, ge=0.0, description="Weight of the term that makes them rarer")
    negative_reduction: Literal["mean_k", "sum_k"] = Field(
        "mean_k", description="mean_k: their mean over a prompt's samples, alpha / K in effect; sum_k: their sum, as in the paper"
    )
    weights: Literal["importance", "uniform"] = Field(
        "importance", description="uniform: every sample of the proposal counts alike in that term"
    )
    weights_beta: float | None = Field(None, description="Another target_beta for that term's weights; null: the same")
    below: float | None = Field(None, description="Only samples worth less count in that term; null: all")
    proposal_learning_rate: float = Field(3e-5, ge=0.0, description="Peak learning rate of the proposal")
    proposal_updates: int = Field(1, ge=1, description="Updates of the proposal a round, each with samples of its own")
    second_term: bool = Field(
        True, description="false: the proposal learns without the term that makes equal samples teach nothing"
    )
    first: Literal["proposal", "policy"] = Field("proposal", description="Which of the two a round updates first")
    start_alpha: float | None = Field(
        None, gt=0.0, description="alpha in the first round, from where it goes to its value by equal factors; null: it stays"
    )
    start_target_beta: float | None = Field(None, description="The same of target_beta; has its sign")

    @model_validator(mode="after")
    def _starts_are_on_the_way(self) -> Self:
        if self.start_alpha is not None and self.alpha == 0:
            raise ValueError(
                f"start_alpha={self.start_alpha} with alpha=0: equal factors never come to 0; leave it out, or set alpha"
            )
        if self.start_target_beta is not None and self.start_target_beta * self.target_beta <= 0:
            raise ValueError(
                f"start_target_beta={self.start_target_beta} with target_beta={self.target_beta}: both need one sign, and none may be 0"
            )
        return self

    def at(self, share: float) -> RepulseSettings:
        """With the values that hold after a share of the run, from 0 to 1."""
        alpha, beta = self.alpha, self.target_beta
        if self.start_alpha is not None:
            alpha = self.start_alpha * (alpha / self.start_alpha) ** share
        if self.start_target_beta is not None:
            beta = self.start_target_beta * (beta / self.start_target_beta) ** share
        return self.model_copy(update={"alpha": alpha, "target_beta": beta})
