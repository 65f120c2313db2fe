"""Rewards that wait for a service: it is asked as responses end, once for each, and the run is that of any other reward."""

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlhf_core.recipes.online.run import run_online
from tests.online.reward_functions import vowels
from tests.online.runs import events, final_weights, metric, online_job, prompts_folder, rollouts
from tests.rewards.scripted_server import Asked, Reply, ScriptedServer
from tests.tiny_models import tiny_model

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.slow]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def by_vowels(asked: Asked) -> Reply:
    body = asked.body
    return Reply({"rewards": vowels(body["prompts"], body["responses"], body["labels"])})


SETTINGS: dict[str, Any] = {"method": "grpo", "steps": 3, "optimizer__learning_rate": 1e-3}


def served(url: str, **settings: Any) -> dict[str, Any]:
    return {"rewards": [{"kind": "http", "url": url, "name": "vowels", **settings}], **SETTINGS}


@pytest.mark.parametrize("async_steps", [0, 1])
def test_a_service_rewards_as_a_function_does_and_is_asked_once_for_each_response(
    async_steps: int, model: Path, tmp_path: Path
) -> None:
    with ScriptedServer(by_vowels) as server:
        job = online_job(
            tmp_path / "http",
            model,
            prompts_folder(tmp_path / "data"),
            **served(server.url, in_flight=4),
            async_steps=async_steps,
        )
        run_online(job)
    here = online_job(tmp_path / "here", model, tmp_path / "data", async_steps=async_steps, **SETTINGS)
    run_online(here)
    assert rollouts(job).equals(rollouts(here))
    expected = final_weights(here)
    assert all(tensor.equal(expected[name]) for name, tensor in final_weights(job).items())
    texts = Counter(text for asked in server.asked for text in asked.body["responses"])
    # Responses of the same tokens to the same prompt are one; the table has each.
    assert sum(texts.values()) <= len(rollouts(job)) and len(server.asked) > 3 * 4, "asked as they end, not once a round"
    assert all(seconds >= 0 for seconds in metric(job, "seconds/rewards"))


def test_a_service_that_restarts_or_answers_garbage_costs_its_responses_only(model: Path, tmp_path: Path) -> None:
    broken = threading.Event()

    def script(asked: Asked) -> Reply:
        if broken.is_set() and len(asked.body["responses"][0]) % 3 == 0:
            return Reply(b"not JSON")
        return by_vowels(asked)

    with ScriptedServer(script) as server:
        port = server.port
        job = online_job(
            tmp_path, model, prompts_folder(tmp_path / "data"), **served(server.url), reward_retries=8, reward_retry_wait_s=0.2
        )
        thread = threading.Thread(target=run_online, args=(job,))
        thread.start()
        while not events(job, "metrics") if job.events.path.exists() else True:
            time.sleep(0.05)
    time.sleep(0.5)
    broken.set()
    with ScriptedServer(script, port):
        thread.join()
    shares = metric(job, "reward/invalid_share")
    assert len(shares) == 3 and shares[0] == 0.0 < max(shares) < 0.5
    assert any("is no JSON" in event["message"] for event in events(job, "warning"))
