"""A run whose actor dies, in start-up or at work, ends within seconds and says which actor and why; nothing is left running."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray
from ray.util import placement_group_table

from data_processing.errors import ConfigError, DataError, PreemptedError
from rlhf_core.cluster.group import ActorFailedError
from rlhf_core.recipes.online.run import run_online
from rlhf_core.recipes.stop import STOP_FILE_NAME
from tests.online.runs import events, online_job, prompts_folder
from tests.tiny_models import tiny_model

pytestmark = [pytest.mark.usefixtures("ray_local")]


class Killer(threading.Thread):
    """Kills the generation actor as soon as `ready` says so, and remembers when."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        super().__init__(daemon=True)
        self.ready = ready
        self.killed_at = 0.0

    def run(self) -> None:
        while not self.killed_at:
            time.sleep(0.02)
            victims = [p for p in own_actors() if p.info["cmdline"][0].startswith("ray::RolloutWorker")]
            if victims and self.ready():
                self.killed_at = time.monotonic()
                os.kill(victims[0].pid, signal.SIGKILL)


def own_actors() -> list[psutil.Process]:
    """Processes of this session's Ray that run an actor of ours; none while this process is not connected to it."""
    node = ray._private.worker.global_worker.node
    if node is None:
        return []
    session = str(node.get_session_dir_path())
    raylet = [p for p in psutil.process_iter(["cmdline"]) if session in " ".join(p.info["cmdline"] or [])]
    children = {child for p in raylet for child in p.children(recursive=True)}
    found = []
    for process in children:
        try:
            process.info = {"cmdline": process.cmdline()}
        except psutil.Error:
            continue
        if process.info["cmdline"] and "Worker." in process.info["cmdline"][0]:
            found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["in setup", "in generate"])
def test_a_dead_sampler_ends_the_run_at_once(tmp_path: Path, moment: str) -> None:
    # One step ahead, so that the sampler is at work while others are waited for.
    data = prompts_folder(tmp_path / "data")
    job = online_job(tmp_path, tiny_model(tmp_path), data, method="grpo", steps=500, async_steps=1, optimizer__learning_rate=0.0)
    started = lambda: job.events.path.exists() and len(events(job, "metrics")) > 1  # noqa: E731
    killer = Killer(started if moment == "in generate" else lambda: True)
    killer.start()
    with pytest.raises(ActorFailedError, match=r"rollout \(rank 0\) in \w+: the actor died") as caught:
        run_online(job)
    assert time.monotonic() - killer.killed_at < 30
    assert "SIGKILL" in str(caught.value) or "died unexpectedly" in str(caught.value)
    deadline = time.monotonic() + 20
    while own_actors() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not own_actors()
    assert all(group["state"] == "REMOVED" for group in placement_group_table().values())


@pytest.mark.slow
def test_a_stop_while_the_actors_start_is_not_waited_with(tmp_path: Path) -> None:
    job = online_job(tmp_path, tiny_model(tmp_path), prompts_folder(tmp_path / "data"), method="grpo")
    (job.resume / STOP_FILE_NAME).touch()
    with pytest.raises(PreemptedError, match="while the actors were starting"):
        run_online(job)
    assert not job.events.path.exists()


@pytest.mark.slow
def test_an_error_in_an_actors_start_up_keeps_its_class_and_words(tmp_path: Path) -> None:
    rewards = [{"kind": "python", "function": "tests.online.reward_functions:missing"}]
    job = online_job(tmp_path, tiny_model(tmp_path), prompts_folder(tmp_path / "data"), rewards=rewards)
    with pytest.raises(ConfigError, match=r"reward \(rank 0\) in setup: rewards.function=.*has no function 'missing'"):
        run_online(job)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rewards": [{"kind": "reward_model"}]}, "the reward model 'reward_model' is asked, and this run has none"),
        ({"lora": {"rank": 4, "dropout": 0.1}}, "lora.dropout=0.1"),
        ({"rollout__max_new_tokens": 64}, "leaves no room for a prompt"),
        ({"critic__warmup_steps": 2}, "would never train the policy"),
        ({"max_length_tokens": 4096}, "4096"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_starts(
    tmp_path: Path, settings: dict[str, object], said: str
) -> None:
    job = online_job(tmp_path, tiny_model(tmp_path), prompts_folder(tmp_path / "data"), **settings)
    with pytest.raises(ConfigError, match=said):
        run_online(job)


def test_prompts_without_room_for_a_response_are_named(tmp_path: Path) -> None:
    job = online_job(tmp_path, tiny_model(tmp_path), prompts_folder(tmp_path / "data"), rollout__max_new_tokens=60)
    with pytest.raises(DataError, match=r"prompts \(p0.*more than 4 tokens"):
        run_online(job)


def test_more_actors_than_the_cluster_has_room_for_says_so(tmp_path: Path) -> None:
    job = online_job(tmp_path, tiny_model(tmp_path), prompts_folder(tmp_path / "data"), engine__world_size=40)
    with pytest.raises(ConfigError, match=r"needs 82 x \(0\.2 CPU\), and the cluster never has more than 4 CPUs"):
        run_online(job)


@pytest.mark.slow
def test_nothing_is_sampled_for_a_policy_that_could_not_be_converted(tmp_path: Path) -> None:
    job = online_job(tmp_path, tiny_model(tmp_path), prompts_folder(tmp_path))
    settings = job.model / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"pad_token_id": -1}))
    with pytest.raises(ConfigError, match=r"not converted afterwards: .*pad_token_id"):
        run_online(job)
    assert not job.events.path.exists() or not events(job, "metrics")
