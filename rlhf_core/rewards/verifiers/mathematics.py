"""Mathematical equality of the answer and the label, as math-verify finds it, as a reward.

The library stops itself by a signal, which works in the main thread of a process only; so it has a process of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_core.rewards.verifiers.answers import nothing, reader, whole, without_thinking
from rlhf_core.rewards.verifiers.apart import Apart
from rlhf_core.rewards.verifiers.verifier import UnusableLabelError, Verifier, labels_of, need
from rlhf_core.settings.rewards.verifiers import AUTO, MathReward

if TYPE_CHECKING:
    from rlhf_core.rewards.build import Around

_OWN_MARKS = ("$", r"\(", r"\[", r"\boxed", r"\begin")


def build(source: MathReward, around: Around) -> Verifier[str]:
    """From settings; raises `ConfigError` where math-verify is not installed."""
    need("math_verify", source.kind)
    compare = Apart(f"{__name__}:equal", "math_verify", source.limit_s)
    marked = reader(source.answer, nothing)

    def read(text: str) -> str | None:
        """Of a text that marks no answer math-verify looks for one itself."""
        if (answer := marked(text)) is not None:
            return in_latex(answer)
        return whole(without_thinking(text)) if source.answer == AUTO else None

    def worth(answer: str, label: str) -> float:
        if (is_equal := compare(answer, in_latex(label))) is None:
            raise UnusableLabelError(
                f"its label {label[:80]!r} is nothing that math-verify reads; write it in LaTeX, or as a number"
            )
        return float(is_equal)

    return Verifier(source.kind, labels_of(source.kind), read, worth, limited=True)


def in_latex(text: str) -> str:
    """A text as a formula, where it is not marked as one."""
    return text if any(mark in text for mark in _OWN_MARKS) else f"${text}$"


def equal(answer: str, label: str) -> bool | None:
    """Whether two texts with a formula are equal; None where the label has none. Takes as long as it takes."""
    from math_verify import parse, verify

    expected = parse(label, parsing_timeout=None)
    if not expected:
        return None
    try:
        return bool(verify(expected, parse(answer, parsing_timeout=None), timeout_seconds=None))
    except Exception:  # of an answer that it trips over
        return False
