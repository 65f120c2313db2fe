"""The procedures task with a second try: the checker says what is wrong with the first answer, and the model may revise it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_processing.procedures.checker import check
from data_processing.procedures.faults import procedure_faults
from rlhf_core.environments.base import Message, Reply

_MOST_FAULTS = 3


class Revision:
    """Tells the faults of an answer, `tries` times at most; a turn earns how much better its score is than the one before."""

    def __init__(self, tries: int = 1) -> None:
        self._left, self._policy, self._best = tries, "", 0.0

    def reset(self, prompt: Sequence[Message], label: str | None, columns: Mapping[str, Any]) -> None:
        """Raises `ValueError` for a prompt that is not of the task."""
        if label is None:
            raise ValueError("the prompt has no policy as label, so its answers cannot be checked")
        self._policy = label

    def step(self, turn: Message) -> Reply:
        """What is wrong, or the end where nothing is, or no try is left."""
        score = check(self._policy, turn["content"]).score
        gain, self._best = score - self._best, score
        metrics = {"score": gain}
        if score == 1.0 or not self._left:
            return Reply(done=True, reward=gain, metrics=metrics)
        self._left -= 1
        found = procedure_faults(self._policy, turn["content"])[:_MOST_FAULTS]
        told = "\n".join(f"- {fault}" for fault in found) or "- It is not the best procedure."
        return Reply(
            [{"role": "user", "content": f"A checker found:\n{told}\nWrite the whole procedure again."}],
            reward=gain,
            metrics=metrics,
        )
