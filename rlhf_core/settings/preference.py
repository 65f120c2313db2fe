"""Settings of preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, model_validator

from data_processing.settings import Settings
from rlhf_core.methods.preference import PREFERENCE, PreferenceMethod
from rlhf_core.settings.training import MethodConfig, TableConfig


class KtoSettings(Settings):
    """What KTO alone reads."""

    desirable_weight: float = Field(1.0, gt=0.0, description="Weight of chosen and desirable answers' losses")
    undesirable_weight: float = Field(1.0, gt=0.0, description="Weight of rejected and undesirable answers' losses")


class SimpoSettings(Settings):
    """What SimPO alone reads."""

    gamma: float = Field(1.0, ge=0.0, description="Target margin, in units of beta times nats a token")


class OrpoSettings(Settings):
    """What ORPO alone reads."""

    odds_ratio_weight: float = Field(0.1, gt=0.0, description="Weight of the odds ratio's loss beside the likelihood's (lambda)")


class PreferenceConfig(MethodConfig[PreferenceMethod], TableConfig):
    """Direct preference optimisation and kin, against a reference whose log-probs are computed once and kept, or against none."""

    methods = PREFERENCE
    otherwise: ClassVar[Mapping[str, Any]] = {"beta": 0.1, "nll_coef": 0.0}

    method: str = Field("dpo", description=f"{', '.join(PREFERENCE)}, or module:NAME of your own (docs/methods.md)")
    beta: float | None = Field(
        None, gt=0.0, description="Scale of the margin, and so of the implicit KL constraint; null: the method's own (dpo 0.1)"
    )
    label_smoothing: float | None = Field(
        None, ge=0.0, lt=0.5, description="Assumed share of flipped labels (cdpo, robust); null: the method's own (0.1)"
    )
    nll_coef: float | None = Field(
        None,
        ge=0.0,
        description="Weight of the chosen response's token-mean negative log-likelihood; null: the method's own (cpo 1, others 0)",
    )
    kto: KtoSettings = Field(default_factory=KtoSettings, description="What KTO alone reads")
    simpo: SimpoSettings = Field(default_factory=SimpoSettings, description="What SimPO alone reads")
    orpo: OrpoSettings = Field(default_factory=OrpoSettings, description="What ORPO alone reads")

    @model_validator(mode="after")
    def _answers_need_neighbours(self) -> PreferenceConfig:
        if self.row.learns_from == "answers" and self.batch_size < 2:
            raise ValueError(
                f"batch_size={self.batch_size} with method '{self.method}': its reference point needs another prompt's answers in the batch, so at least 2"
            )
        return self
