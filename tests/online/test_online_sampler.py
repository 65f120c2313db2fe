"""What was drawn comes back from a checkpoint as it was, and is refused where its weights are too old."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_core.batching.templates import Renderer
from rlhf_core.models.load import load_tokenizer
from rlhf_core.recipes.online_rollouts import read_prompts
from rlhf_core.recipes.online_sampler import Sampler
from rlhf_core.recipes.online_workers import Workers
from tests.online.runs import online_job, prompts_folder
from tests.tiny_models import tiny_model

# Nothing here is drawn, so no actor is called.
NO_ACTORS: Any = None


def sampler(folder: Path, **settings: Any) -> Sampler:
    job = online_job(folder, tiny_model(folder), prompts_folder(folder / "data"), prompts_per_step=1, **settings)
    renderer = Renderer(load_tokenizer(job.model))
    workers: Workers = NO_ACTORS
    return Sampler(job, workers, renderer, read_prompts(job, renderer))


def drawn(step: int, version: int) -> dict[str, Any]:
    """A checkpoint's round in flight: two responses to one prompt."""
    generation = {"response_ids": [5, 6], "logprobs": [-0.1, -2.3456789], "finish_reason": "stop", "weight_version": version}
    return {"step": step, "seconds": 0.5, "groups": [[generation, {**generation, "finish_reason": "length"}]]}


def test_the_round_in_flight_survives_a_checkpoint(tmp_path: Path) -> None:
    state = json.loads(json.dumps(drawn(3, 2)))
    ahead = sampler(tmp_path, async_steps=1)
    assert ahead.state() is None
    ahead.restore(state)
    assert ahead.state() == state
    # It is drawn already: beginning it again asks nobody.
    ahead.begin(3, version=3)
    rollouts = ahead.collect(3)
    assert [g.finish_reason for g in rollouts.generations] == ["stop", "length"]
    assert rollouts.sampler_logprobs.tolist()[0] == pytest.approx([-0.1, -2.3456789])
    assert ahead.state() is None


@pytest.mark.parametrize(("async_steps", "version"), [(0, 2), (1, 1), (1, 4)])
def test_weights_that_are_too_old_or_not_there_yet_are_an_error(tmp_path: Path, async_steps: int, version: int) -> None:
    late = sampler(tmp_path, async_steps=async_steps)
    late.restore(drawn(3, version))
    with pytest.raises(RuntimeError, match=rf"versions \[{version}\]; allowed are {3 - async_steps} to 3"):
        late.collect(3)
