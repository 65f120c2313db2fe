"""Online runs with rewards of segments: what tokens earn, the report's parts, and the bandit that is an ordinary outcome."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_processing.errors import ConfigError
from flows.settings.layers import validate
from rlhf_core.engine.convert import convert_checkpoint
from rlhf_core.recipes.online.run import run_online
from rlhf_core.recipes.reward_model import train_reward_model
from rlhf_core.settings.models import ConvertConfig
from tests.online.runs import final_weights, metric, online_job, prompts_folder, rollouts
from tests.recipes.small_jobs import job, reward_config, write_data
from tests.tiny_models import tiny_model

PPO: dict[str, Any] = {"method": "ppo", "updates_per_step": 1, "steps": 1, "rewards": [{"kind": "reward_model"}]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def scorers(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reward models of segments, of the whole as one segment, and of answers with the same weights as that."""
    folder, found = tmp_path_factory.mktemp("scorers"), {}
    for name, threshold in (("segment", 5.8), ("whole", 1000.0)):
        config = reward_config(granularity="segment", segment={"threshold_nats": threshold}, max_steps=2)
        run = job(config, model, write_data(folder / "data"), folder / name)
        train_reward_model(run)
        convert_checkpoint(run.output, model, folder / name / "model", ConvertConfig(dtype="fp32"), lineage={})
        found[name] = folder / name / "model"
    found["answer"] = folder / "answer"
    found["answer"].mkdir()
    for path in found["whole"].iterdir():
        if path.is_file() and path.name not in ("segments.json", "params.json"):
            (found["answer"] / path.name).write_bytes(path.read_bytes())
    return found


def with_scorer(job: Any, folder: Path) -> Any:
    return replace(job, scorers={"reward_model": folder})


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_segments_earn_at_their_tokens_and_are_shown(model: Path, scorers: dict[str, Path], tmp_path: Path) -> None:
    data = prompts_folder(tmp_path / "data")
    run = with_scorer(online_job(tmp_path, model, data, credit="segment", **PPO), scorers["segment"])
    run_online(run)
    rows = rollouts(run).to_pylist()
    for row in rows:
        ends = [unit["end"] for unit in row["units"]]
        assert [unit["start"] for unit in row["units"]] == [0, *ends[:-1]]
        assert row["reward"] == pytest.approx(math.fsum(unit["credit"] for unit in row["units"]), abs=1e-5)
    assert max(len(row["units"]) for row in rows) > 1
    assert metric(run, "reward/mean")[0] == pytest.approx(sum(row["reward"] for row in rows) / len(rows), abs=1e-5)
    segments = sum(len(row["units"]) for row in rows) / len(rows)
    assert metric(run, "reward/reward_model/segments/mean")[0] == pytest.approx(segments)
    shown = json.loads((run.output / "credit.json").read_text())
    assert {part["credit"] for each in shown for part in each["parts"] if part["credit"] is not None} <= {
        unit["credit"] for row in rows for unit in row["units"]
    }


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_one_segment_without_a_scale_is_the_outcome(model: Path, scorers: dict[str, Path], tmp_path: Path) -> None:
    data = prompts_folder(tmp_path / "data")
    bandit = {"kind": "segment", "mode": "segment_last_avg", "normalize": False}
    runs = [
        with_scorer(online_job(tmp_path / name, model, data, credit=credit, **PPO), scorers[name])
        for name, credit in (("whole", bandit), ("answer", "outcome"))
    ]
    for run in runs:
        run_online(run)
    one, other = (rollouts(run).column("reward").to_pylist() for run in runs)
    assert one == pytest.approx(other, abs=1e-5)
    whole, answer = map(final_weights, runs)
    assert all((whole[name] - own).abs().max() < 1e-4 for name, own in answer.items())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rewards": [{"kind": "length", "max_tokens": 5}]}, "kind 'reward_model'"),
        ({"rewards": [{"kind": "reward_model", "normalise": "running"}]}, "without normalise"),
        ({"method": "grpo", "samples_per_prompt": 4}, "every token of a response the same advantage"),
        ({"credit": {"kind": "segment", "mode": "evenly"}}, "segment_normalization"),
        ({"method": "opd"}, "learns from a teacher and not from rewards"),
    ],
)
def test_what_cannot_be_is_refused_with_the_settings(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        validate({"online": {"method": "ppo", "credit": "segment", **settings}})
