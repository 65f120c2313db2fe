"""What a round says of its conversations, and what an environment says of itself before a run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import TimeoutError as OverdueError
from pathlib import Path
from statistics import fmean
from typing import Any

from data_processing.errors import ConfigError
from rlhf_core.environments.host import EnvironmentFailedError, Host
from rlhf_core.recipes.online.rollouts import Rollouts, rows_to_show
from rlhf_core.recipes.prompts import Prompt
from rlhf_core.settings.environment import EnvironmentSettings

# In the artifact; the report reads it.
CONVERSATIONS = "conversations.json"
# Loading an environment may import much.
_LOAD_LIMIT_S = 120.0


def tools_of(settings: EnvironmentSettings) -> Sequence[Mapping[str, Any]] | None:
    """The functions that the environment's class says a model may call; None without any. Raises `ConfigError` where it cannot load."""
    if not settings.is_given:
        return None
    host = Host(*settings.hosted)
    try:
        tools: Sequence[Mapping[str, Any]] | None = host.ask(-1, "tools").result(_LOAD_LIMIT_S)
    except (EnvironmentFailedError, OverdueError) as error:
        raise ConfigError(f"{settings.said} does not load: {error or 'no answer'}; correct it") from error
    finally:
        host.close()
    return tools or None


def conversation_metrics(rollouts: Rollouts) -> dict[str, float]:
    """Turns, how conversations ended, and the means of what environments counted; nothing for responses of one turn."""
    trajectories = [g.trajectory for g in rollouts.generations if g.trajectory is not None]
    if not trajectories:
        return {}
    ends = Counter(each.ended_by for each in trajectories)
    names = dict.fromkeys(name for each in trajectories for name in each.metrics)
    replied = [len(g.response_ids) - sum(g.is_learnt) for g in rollouts.generations]
    return {
        "conversation/turns": fmean(len(each.turn_ends) for each in trajectories),
        "conversation/reply_tokens": fmean(replied),
        **{f"conversation/ended_by_{why}": count / len(trajectories) for why, count in sorted(ends.items())},
        **{f"conversation/{name}": fmean(each.metrics.get(name, 0.0) for each in trajectories) for name in names},
    }


def conversation_failures(rollouts: Rollouts) -> list[str]:
    """Why environments failed."""
    return [g.trajectory.failure for g in rollouts.generations if g.trajectory is not None and g.trajectory.failure]


def write_conversations(rollouts: Path, prompts: Sequence[Prompt], path: Path) -> None:
    """A few conversations of the last round that is kept in a folder, as JSON: the prompt, who said what, what each turn earned."""
    asked = {prompt.id: [dict(message) for message in prompt.messages] for prompt in prompts}
    chosen = rows_to_show(rollouts, "trajectory")
    told = [{"prompt": asked[row["prompt_id"]], **json.loads(row["trajectory"])} for row in chosen]
    path.write_text(json.dumps(told), encoding="utf-8")
