"""What a kind of reward says of texts, built from settings as a run builds it."""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from rlhf_core.rewards.base import ScoredResponse, Scores
from rlhf_core.rewards.build import Around, build_scorer
from rlhf_core.settings.rewards.base import RewardSettings
from rlhf_core.settings.rewards.kinds import RewardSource
from rlhf_core.settings.training import EngineSettings

_SETTINGS: TypeAdapter[RewardSettings] = TypeAdapter(RewardSource)


def settings(kind: str, **fields: Any) -> RewardSettings:
    return _SETTINGS.validate_python({"kind": kind, **fields})


def scorer(kind: str, **fields: Any) -> Any:
    return build_scorer(settings(kind, **fields), Around(Path("unused"), EngineSettings()))


def response(text: str, label: str | None = None, tokens: int = 1, **columns: Any) -> ScoredResponse:
    return ScoredResponse("p0", [{"role": "user", "content": "?"}], label, [1], [2] * tokens, text, columns)


def scores(kind: str, text: str, label: str | None = None, columns: dict[str, Any] | None = None, **fields: Any) -> Scores:
    return Scores.of(scorer(kind, **fields).score([response(text, label, **(columns or {}))]))


def worth(kind: str, text: str, label: str | None = None, columns: dict[str, Any] | None = None, **fields: Any) -> float | None:
    [value] = scores(kind, text, label, columns, **fields).rewards
    return value
