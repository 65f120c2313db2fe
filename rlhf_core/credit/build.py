"""From settings to what spreads rewards: a line a kind."""

from __future__ import annotations

from typing import Any

from data_processing.errors import ConfigError
from rlhf_core.credit.base import Credit
from rlhf_core.imported import imported
from rlhf_core.settings.credit import DrcaCredit, OwnCredit
from rlhf_core.settings.online import OnlineConfig


def build_credit(config: OnlineConfig) -> Credit | None:
    """What spreads the rewards of a run; None where they stay as they are. Raises `ConfigError` for a class that cannot be made."""
    settings = config.credit
    if isinstance(settings, DrcaCredit):
        from rlhf_core.credit.drca import Drca

        return Drca(settings, config.score_clip)
    if isinstance(settings, OwnCredit):
        return _own(settings)
    return None


def _own(settings: OwnCredit) -> Credit:
    made: Any = imported(settings.by, "credit.by", "my_credit:ByLength")
    if not isinstance(made, type) or "__call__" not in dir(made):
        raise ConfigError(f"credit.by='{settings.by}': must be a class whose objects are called with a round: docs/credit.md")
    try:
        credit: Credit = made(**settings.options)
    except TypeError as error:
        raise ConfigError(f"credit.by='{settings.by}' cannot be made with credit.options {settings.options}: {error}") from error
    return credit
