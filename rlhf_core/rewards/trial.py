"""Each reward asked once about a few prompts before anything is started; what may hang in a process of its own.

A process can be ended whatever a function does. `python -m rlhf_core.rewards.trial FOLDER` is that process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from data_processing.apart import import_path, last_line
from data_processing.errors import ConfigError
from data_processing.turns import extra_of
from rlhf_core.rewards.base import ScoredResponse, Scores
from rlhf_core.rewards.build import Around, build_scorer
from rlhf_core.rewards.errors import TransientRewardError
from rlhf_core.rollout.base import Trajectory
from rlhf_core.settings.rewards.base import RewardSettings
from rlhf_core.settings.rewards.functions import PythonReward
from rlhf_core.settings.rewards.kinds import RewardSource
from rlhf_core.settings.training import EngineSettings

LIMIT_S = 60.0
_ASKED, _FOUND = "asked.json", "found.json"
_ANSWER = "This is an answer."


def ask(source: RewardSettings, prompts: Sequence[Mapping[str, Any]], allowed_hosts: Sequence[str] = ()) -> str | None:
    """Load the source and ask it about made-up answers to `prompts` (rows of the prompts table; none: it is loaded only).

    Returns what may work later, in words, None where it works now. Raises `ConfigError` for what can never work. One that
    `computes` is not for this.
    """
    error, later = _answered(source, prompts, allowed_hosts, LIMIT_S)
    return _told(source, prompts, error, later)


def ask_apart(
    source: RewardSettings, prompts: Sequence[Mapping[str, Any]], allowed_hosts: Sequence[str] = (), *, limit_s: float = LIMIT_S
) -> str | None:
    """As `ask`, in a process of its own, which gets `limit_s` seconds, being loaded included; raises `ConfigError` after that too."""
    asked = {"source": source.model_dump(mode="json"), "prompts": list(prompts), "limit_s": limit_s, "hosts": list(allowed_hosts)}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, _ASKED).write_text(json.dumps(asked), encoding="utf-8")
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", __spec__.name if __spec__ else __name__, folder],
                env={**os.environ, "PYTHONPATH": import_path()},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=2 * limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(
                f"{_named(source)} did not return within {limit_s:g} s from one call on {len(prompts)} prompts, and could "
                "not be ended; look at what it waits for, or leave this check out (--no-check)"
            ) from None
        found = Path(folder, _FOUND)
        if not found.is_file():
            last = last_line(done.stderr)
            raise ConfigError(f"{_named(source)}: its process ended with code {done.returncode} when it was tried: {last}")
        error, later = json.loads(found.read_text(encoding="utf-8"))
    return _told(source, prompts, error, later)


def main(folder: Path) -> None:
    """Try what `asked.json` names and write what is wrong with it to `found.json`: [for good, for now]."""
    asked = json.loads((folder / _ASKED).read_text(encoding="utf-8"))
    source: RewardSettings = TypeAdapter(RewardSource).validate_python(asked["source"])
    found = _answered(source, asked["prompts"], asked["hosts"], asked["limit_s"])
    (folder / _FOUND).write_text(json.dumps(found), encoding="utf-8")


def _answered(
    source: RewardSettings, prompts: Sequence[Mapping[str, Any]], allowed_hosts: Sequence[str], limit_s: float
) -> tuple[str | None, str | None]:
    """What is wrong with it: for good, and for now."""
    around = Around(Path(), EngineSettings(), limit_s=limit_s, allowed_hosts=tuple(allowed_hosts))
    try:
        scorer = build_scorer(source, around)
        responses = [_response(row) for row in prompts]
        return None, _nothing_but_failures(Scores.of(scorer.score(responses))) if responses else None
    except TransientRewardError as raised:
        return None, str(raised)
    except ConfigError as raised:
        return str(raised), None


def _told(source: RewardSettings, prompts: Sequence[Any], error: str | None, later: str | None) -> str | None:
    if error:
        raise ConfigError(f"{error} (tried on {len(prompts)} prompts before the start; --no-check leaves this out)")
    return f"{_named(source)}: {later}" if later else None


def _nothing_but_failures(scores: Scores) -> str | None:
    """Why no response got a reward, where each has a reason."""
    return scores.failures[0] if scores.failures and all(scores.failures) else None


def _named(source: RewardSettings) -> str:
    return f"reward function '{source.function}'" if isinstance(source, PythonReward) else f"rewards: kind '{source.kind}'"


def _response(row: Mapping[str, Any]) -> ScoredResponse:
    # As one that an environment ended at once: those who read no turns do not look at it.
    told = Trajectory([{"role": "assistant", "content": _ANSWER}], turn_ends=[3], rewards=[0.0])
    return ScoredResponse(row["id"], row["prompt"], row["label"], [0], [0, 0, 0, 0], _ANSWER, extra_of(row), trajectory=told)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    # A thread that the function has left behind must not keep the check waiting.
    os._exit(0)
