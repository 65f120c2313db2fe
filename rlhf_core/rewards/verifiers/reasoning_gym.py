"""What reasoning-gym says of an answer to one of its questions, as a reward. Rows are those of the data source of that kind.

Some of its checkers evaluate the answer as Python, so they have a process of their own.
"""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

from data_processing.sources.generated import entry_of
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.verifiers.answers import reader, whole
from rlhf_core.rewards.verifiers.apart import Apart
from rlhf_core.rewards.verifiers.verifier import Verifier, need
from rlhf_core.settings.rewards.verifiers import ReasoningGymReward

if TYPE_CHECKING:
    from rlhf_core.rewards.build import Around

DATASET, ENTRY = "dataset", "entry"


def build(source: ReasoningGymReward, around: Around) -> Verifier[tuple[str, str]]:
    """From settings; raises `ConfigError` where reasoning-gym is not installed."""
    need("reasoning_gym", source.kind)
    scored = Apart(f"{__name__}:score", "reasoning_gym", source.limit_s)

    def worth(answer: str, asked: tuple[str, str]) -> float:
        return float(scored(answer, *asked))

    return Verifier(source.kind, _asked, reader(source.answer, whole), worth, limited=True)


def _asked(response: ScoredResponse) -> tuple[str, str] | None:
    """The dataset's name and the entry as JSON; None for rows of other sources."""
    dataset, entry = response.columns.get(DATASET), response.columns.get(ENTRY)
    if not isinstance(dataset, str) or entry is None:
        return None
    return dataset, entry if isinstance(entry, str) else json.dumps(entry)


def score(answer: str, dataset: str, entry: str) -> float:
    """What the dataset's own `score_answer` gives, in [0, 1] by its convention; 0 for an answer that it trips over."""
    scored, asked = _scorer(dataset), entry_of(entry)
    try:
        return float(scored(answer, asked))
    except Exception:  # it may raise anything over what a model wrote
        return 0.0


@cache
def _scorer(dataset: str) -> Any:
    import reasoning_gym

    return reasoning_gym.get_score_answer_fn(dataset)
