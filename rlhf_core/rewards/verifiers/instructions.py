"""The share of a row's constraints that a response keeps, as a reward; rows are in the form of the IFEval data set."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from data_processing.errors import ConfigError
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.verifiers.answers import Read, whole, without_thinking
from rlhf_core.rewards.verifiers.constraints import CONSTRAINTS
from rlhf_core.rewards.verifiers.verifier import UnusableLabelError, Verifier
from rlhf_core.settings.rewards.verifiers import InstructionsReward

if TYPE_CHECKING:
    from rlhf_core.rewards.build import Around

IDS, ARGUMENTS = "instruction_id_list", "kwargs"
_LOG = logging.getLogger("alignflow")
Asked = Sequence[tuple[str, Mapping[str, Any]]]


class InstructionsScorer(Verifier[Asked]):
    """Does not apply to a row with an id that is not checked here; `notes` names those that were met."""

    def __init__(self, *, all_of_them: bool) -> None:
        super().__init__("instructions", self._asked, _said, partial(_kept, all_of_them=all_of_them))
        self._unknown: dict[str, None] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """One line, once there is an id that is not checked."""
        listed = ", ".join(self._unknown)
        return (f"reward 'instructions' does not apply to rows that ask for what it does not check: {listed}",) * bool(listed)

    def _asked(self, response: ScoredResponse) -> Asked | None:
        asked = constraints_of(response)
        unknown = [name for name, _ in asked if name not in CONSTRAINTS]
        if new := [name for name in unknown if name not in self._unknown]:
            self._unknown |= dict.fromkeys(new)
            _LOG.warning("warning: %s", self.notes[0])
        return None if unknown or not asked else asked


def build(source: InstructionsReward, around: Around) -> InstructionsScorer:
    """From settings."""
    return InstructionsScorer(all_of_them=source.all_of_them)


def constraints_of(response: ScoredResponse) -> Asked:
    """The ids of a row, each with its arguments, those that are null left out; none for a row without the column.

    Raises `ConfigError` naming the prompt where the columns are no lists of the same length.
    """
    ids, arguments = (_from_json(response.columns.get(name)) for name in (IDS, ARGUMENTS))
    if ids is None:
        return []
    arguments = [{}] * len(ids) if arguments is None and isinstance(ids, list) else arguments
    if not (isinstance(ids, list) and isinstance(arguments, list) and len(ids) == len(arguments)):
        raise ConfigError(
            f"rewards: kind 'instructions': columns '{IDS}' and '{ARGUMENTS}' of prompt {response.prompt_id} must be lists of the same "
            "length; correct the row"
        )
    given = [{name: value for name, value in (each or {}).items() if value is not None} for each in arguments]
    return list(zip(map(str, ids), given, strict=True))


def is_kept(text: str, name: str, given: Mapping[str, Any]) -> bool:
    """Whether a response keeps one constraint; raises `UnusableLabelError` where its arguments are not those it has."""
    check = CONSTRAINTS[name]
    wanted = [p.name for p in inspect.signature(check).parameters.values() if p.kind is p.KEYWORD_ONLY]
    try:
        return check(text, **{argument: given[argument] for argument in wanted})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnusableLabelError(f"'{name}' takes {wanted}, and the row's '{ARGUMENTS}' are {dict(given)}: {error}") from error


def _kept(text: str, asked: Asked, *, all_of_them: bool) -> float:
    kept = [is_kept(text, name, given) for name, given in asked]
    return float(all(kept)) if all_of_them else sum(kept) / len(kept)


def _from_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


_said: Read = lambda text: whole(without_thinking(text))  # noqa: E731
