"""An environment that cannot work is refused by the plan, in one line, before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_processing.errors import ConfigError
from flows.graph.build import build_graph
from flows.graph.plan import make_plan
from flows.graph.selection import select
from flows.running.check_environments import check_environments
from flows.running.check_rewards import check_rewards
from flows.settings.presets import resolve
from tasks.runtime.contract.home import Home
from tasks.runtime.keys.closure import Code

MADE = "tests.environments.made"
pytestmark = pytest.mark.seconds


def tried(folder: Path, path: str, options: dict[str, Any] | None = None) -> None:
    settings = {"online.environment": {"path": path, "options": options or {}}, "online.rewards": [{"kind": "environment"}]}
    config = resolve("tiny", overrides={**settings, "online.method": "grpo"})
    plan = make_plan(config, select(build_graph(config), None, "online"), Home.open(folder), Code())
    check_environments(plan)
    check_rewards(plan, ())


@pytest.mark.parametrize(
    ("path", "options", "said"),
    [
        ("nowhere:X", {}, "there is no module 'nowhere'"),
        (f"{MADE}:None", {}, r"online: environment\.path='.*made:None': loading it: ConfigError|its process ended"),
        (
            f"{MADE}:WrongReplies",
            {"returned": {"reward": 1}},
            r"step after prompt \w+: ValueError: .*no messages and is not done",
        ),
        (f"{MADE}:Echo", {"replays": 1}, r"reset with prompt \w+: TypeError: .*replays"),
        ("rlhf_core.environments.calculator:Calculator", {}, r"reset with prompt \w+: ValueError: the label .* is no number"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, path: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tried(tmp_path, path, options)


def test_what_works_passes(tmp_path: Path) -> None:
    tried(tmp_path, f"{MADE}:Echo", {"replies": 1})
    tried(tmp_path, "rlhf_core.environments.procedures:Revision")


def test_answers_of_one_turn_have_no_environment() -> None:
    with pytest.raises(ConfigError, match=r"kind 'environment' is for online training"):
        resolve("tiny", overrides={"sample.rewards": [{"kind": "environment"}]})
