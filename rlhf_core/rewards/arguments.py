"""What a reward function is called with: our form, and that of TRL's trainers. Both get, by name, what they ask for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from data_processing.errors import ConfigError
from rlhf_core.rewards.base import ScoredResponse

OURS, TRL = "responses", "completions"
# Columns of a prompt's row that become its label; a function may ask for the label by the name that the column had.
LABEL_NAMES = ("label", "ground_truth", "answer", "final_answer", "solution")


@dataclass(frozen=True)
class Signature:
    """Which arguments a function takes by name: `required` ones, those `named` at all, and whether it takes any (`**kwargs`)."""

    path: str
    required: frozenset[str]
    named: frozenset[str]
    takes_any: bool

    @classmethod
    def of(cls, function: Callable[..., Any], path: str) -> Signature:
        """Read it; raises `ConfigError` for a function that takes neither form."""
        try:
            parameters = tuple(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):
            parameters = ()
        by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        named = frozenset(p.name for p in by_name)
        required = frozenset(p.name for p in by_name if p.default is p.empty)
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if unnamed := [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]:
            raise ConfigError(f"reward function '{path}' takes {unnamed} by position; arguments are given by name: {_FORMS}")
        if not takes_any and not named & {OURS, TRL}:
            raise ConfigError(f"reward function '{path}' takes {sorted(named)} and so no responses; {_FORMS}")
        return cls(path, required, named, takes_any)

    @property
    def is_ours(self) -> bool:
        """Whether it is called in our form, with messages as prompts and texts as responses."""
        return OURS in self.named

    def may_take_text(self, responses: Sequence[ScoredResponse]) -> bool:
        """Whether TRL would give the function texts: its data may be plain where every prompt is one user turn."""
        return not self.is_ours and all(len(r.prompt) == 1 and r.prompt[0]["role"] == "user" for r in responses)

    def arguments(self, responses: Sequence[ScoredResponse], *, as_text: bool) -> dict[str, Any]:
        """The keyword arguments of a call; raises `ConfigError` naming one that the prompts have no column for."""
        given = _in_our_form(responses) if self.is_ours else _in_form_of_trl(responses, as_text)
        columns = {name for response in responses for name in response.columns}
        wanted = self.named | columns if self.takes_any else self.named
        for name in wanted - given.keys():
            if (column := _column(responses, name)) is not None:
                given[name] = column
        if missing := sorted(self.required - given.keys()):
            raise ConfigError(
                f"reward function '{self.path}' needs {missing}, and the prompts have no such column; they have "
                f"{sorted({'label', *columns})}. Name one of them, give the prompts the column, or give the argument a default"
            )
        return {name: value for name, value in given.items() if self.takes_any or name in self.named}


def _in_our_form(responses: Sequence[ScoredResponse]) -> dict[str, Any]:
    return {
        "prompts": [list(r.prompt) for r in responses],
        OURS: [r.text for r in responses],
        "labels": [r.label for r in responses],
        "finish_reasons": [r.finish_reason for r in responses],
        "completion_ids": [list(r.response_ids) for r in responses],
    }


def _in_form_of_trl(responses: Sequence[ScoredResponse], as_text: bool) -> dict[str, Any]:
    return {
        "prompts": [r.prompt[0]["content"] if as_text else list(r.prompt) for r in responses],
        TRL: [r.text if as_text else [{"role": "assistant", "content": r.text}] for r in responses],
        "completion_ids": [list(r.response_ids) for r in responses],
        "trainer_state": SimpleNamespace(global_step=responses[0].step if responses else 0),
        "label": [r.label for r in responses],
        "log_extra": _not_kept,
        "log_metric": _not_kept,
    }


def _column(responses: Sequence[ScoredResponse], name: str) -> list[Any] | None:
    """A further column of the prompts, None where a row lacks it; None for one that no row has and that is no label."""
    if any(name in r.columns for r in responses):
        return [r.columns.get(name) for r in responses]
    return [r.label for r in responses] if name in LABEL_NAMES and any(r.label is not None for r in responses) else None


def _not_kept(*_: Any) -> None:
    """Stands in for the logging functions of TRL's trainers: numbers are kept that are returned in a dict."""


_FORMS = "write it as (prompts, responses, labels), or as for TRL (prompts, completions, **columns)"
