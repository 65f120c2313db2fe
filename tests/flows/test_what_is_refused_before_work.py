"""What a later stage would refuse is refused by the plan: tables, metrics, devices, adapters, rewards, places and servers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_model

from data_processing.errors import ConfigError
from flows.graph.build import build_graph
from flows.graph.plan import make_plan
from flows.graph.selection import select
from flows.running.check_servers import check_prefect
from flows.running.checks import check_what_runs
from flows.services.environment import without_proxy
from flows.services.processes import free_port
from flows.settings.presets import resolve
from rlhf_core.settings.rewards.functions import PythonReward
from tasks.runtime.contract.home import Home
from tasks.runtime.keys.closure import Code

REPOSITORY = Path(__file__).resolve().parents[2]
OWN = {"data.procedures": None, "evaluate.metrics": ["length", "perplexity"]}

REWARDS = """
import time

def fine(prompts, responses, labels):
    return [0.0 for _ in responses]

def reads_labels(completions, ground_truth, **kwargs):
    assert ground_truth == ["4", "6"], ground_truth
    return [1.0 if truth in completion else 0.0 for truth, completion in zip(ground_truth, completions)]

def breaks(prompts, responses, labels):
    raise KeyError("colour")

def texts(prompts, responses, labels):
    return ["good" for _ in responses]

def wants(completions, colour):
    return [1.0 for _ in completions]

def sleeps(prompts, responses, labels):
    time.sleep(3600)

def ends_the_process(prompts, responses, labels):
    import os
    os._exit(7)

def away(prompts, responses, labels):
    raise ConnectionError("nobody is there")
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALIGNFLOW_HOME", str(tmp_path / "home"))
    return Home.open(tmp_path / "home")


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, list[dict[str, str]]]:
    lines = {
        "sft": '{"prompt": "2 + 2?", "response": "4"}\n',
        "preference": '{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}\n',
        "prompts": '{"prompt": "2 + 2?", "label": "4"}\n{"prompt": "3 + 3?", "label": "6"}\n',
        "unpaired": '{"prompt": "2 + 2?", "response": "4", "desirable": true}\n',
    }
    for name, text in lines.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    return {name: [{"path": str(tmp_path / f"{name}.jsonl")}] for name in lines}


@pytest.fixture(autouse=True)
def reward_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tried_rewards.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(str(tmp_path))


def refuse(home: Home, until: str | None = None, **settings: Any) -> None:
    config = resolve("quickstart", overrides=settings)
    plan = make_plan(config, select(build_graph(config), None, until), home, Code())
    check_what_runs(config, plan, home)


def given(sources: dict[str, list[dict[str, str]]], *tables: str) -> dict[str, Any]:
    return {f"data.{table}": sources[table] for table in tables}


@pytest.mark.parametrize(
    ("tables", "settings", "until", "said"),
    [
        (
            ("sft",),
            {},
            "online",
            r"online: needs the table 'prompts'.*data give only.*give sources in data\.prompts or data\.proc",
        ),
        (("prompts",), {}, "sft", r"sft: needs the table 'sft'.*pipeline\.sft: null"),
        (("sft", "prompts", "unpaired"), {}, "preference", r"preference: needs the table 'preference'"),
        (("sft", "prompts"), {"preference.method": "kto"}, "preference", r"'preference' or 'unpaired'"),
        (("sft",), {}, "evaluate_base", r"evaluate_base: needs the table 'prompts'"),
    ],
)
def test_a_table_that_the_data_do_not_give_is_named(
    home: Home, sources: Any, tables: tuple[str, ...], settings: dict[str, Any], until: str, said: str
) -> None:
    own = {"pipeline.reward_model": None, "online.rewards": [{"kind": "procedures"}], "online.method": "grpo"}
    with pytest.raises(ConfigError, match=said):
        refuse(home, until, **OWN, **own, **given(sources, *tables), **settings)


def test_a_generator_that_the_baseline_is_not_of_is_named() -> None:
    trained = {"pipeline.sft": {"stage": "sft"}, "pipeline.vr_cli": {"generator": "sft"}}
    said = r"pipeline\.vr_cli\.generator: got 'sft', and its baseline 'baseline' is computed with 'base'; use generator: base, or"
    with pytest.raises(ConfigError, match=said):
        build_graph(resolve("vr_cli", overrides=trained))
    both = build_graph(resolve("vr_cli", overrides=trained | {"pipeline.baseline": {"model": "sft"}}))
    assert both["vr_cli"].inputs["generator"] == both["evaluate_vr_cli"].inputs["generator"] == "convert_sft"


def test_a_teacher_that_the_method_does_not_ask_is_refused() -> None:
    entry = {
        "stage": "online",
        "model": "base",
        "teacher": "base",
        "set": {"method": "grpo", "rewards": [{"kind": "procedures"}]},
    }
    with pytest.raises(
        ConfigError, match=r"pipeline\.online: the input 'teacher' is for methods.*'grpo' does not.*use method 'opd'"
    ):
        build_graph(resolve("quickstart", overrides={"pipeline.online": entry}))


def test_kto_is_content_with_either_table(home: Home, sources: Any) -> None:
    for table in ("preference", "unpaired"):
        refuse(home, "preference", **OWN, **given(sources, "sft", table), **{"preference.method": "kto"})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"compare.primary_metric": "procedures.score"}, r"'procedures\.score' is not measured.*allowed are perplexity"),
        ({"compare.primary_metric": "reward"}, r"'reward' is not measured.*allowed are perplexity"),
        ({"evaluate.metrics": ["length"]}, r"no metric that can decide is measured"),
    ],
)
def test_a_metric_that_nothing_measures_is_refused(home: Home, sources: Any, settings: dict[str, Any], said: str) -> None:
    own = {"pipeline.reward_model": None, "pipeline.online": None, "pipeline.preference": None}
    tables = given(sources, "sft", "prompts")
    with pytest.raises(ConfigError, match=rf"compare\.primary_metric: {said}"):
        refuse(home, **{**OWN, **own, **tables, **settings})
    refuse(home, **{**OWN, **own, **tables})


@pytest.mark.parametrize(
    ("only", "settings", "said"),
    [
        (["sft"], {"sft.engine.gpus_per_rank": 1, "sft.engine.world_size": 4}, r"sft: needs 4 x \(1 CPU and 1 GPU\)"),
        (["online"], {"online.engine.gpus_per_rank": 0.5}, r"online: needs 4 x \(0\.2 CPU and 0\.5 GPU\)"),
        (["evaluate"], {"evaluate.gpus": 1}, r"evaluate_base: needs 1 x \(1 CPU and 1 GPU\)"),
    ],
)
def test_more_gpus_than_there_are_is_refused(
    home: Home, monkeypatch: pytest.MonkeyPatch, only: list[str], settings: dict[str, Any], said: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=rf"{said}, and this machine never has more than .*0 GPUs; lower .*gpus.*0 computes on"):
        refuse(home, *only, **settings)


def test_more_cpus_than_there_are_is_refused(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(
        ConfigError, match=r"sft: needs 999 x \(1 CPU\), and this machine never has more than \d+ CPUs?; lower engine"
    ):
        refuse(home, "sft", **{"sft.engine.world_size": 999})


def test_adapters_for_layers_that_the_model_lacks_are_refused(home: Home, tmp_path: Path) -> None:
    settings = {"model.path": str(tiny_model(tmp_path / "models", "llama"))}
    with pytest.raises(
        ConfigError, match=r"sft\.lora\.target_modules: 'c_attn' is no linear layer of this model; it has .*q_proj"
    ):
        refuse(home, "sft", **settings, **{"sft.lora.target_modules": ["q_proj", "c_attn"]})
    refuse(home, "sft", **settings, **{"sft.lora.target_modules": ["q_proj"]})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "breaks",
            r"tried_rewards:breaks' raised KeyError: 'colour' \(line \d+ of .*tried_rewards\.py.*tried on 2 prompts before",
        ),
        ("texts", r"tried_rewards:texts' must return a list of numbers"),
        ("wants", r"needs \['colour'\], and the prompts have no such column"),
        ("ends_the_process", r"tried_rewards:ends_the_process': its process ended with code 7"),
    ],
)
def test_a_reward_that_cannot_work_is_found_by_one_call(home: Home, sources: Any, name: str, said: str) -> None:
    online = {"online.rewards": [{"kind": "python", "function": f"tried_rewards:{name}"}], "online.method": "grpo"}
    settings = {**OWN, **given(sources, "sft", "prompts"), **online, "pipeline.preference": None, "pipeline.reward_model": None}
    with pytest.raises(ConfigError, match=said):
        refuse(home, "online", **settings)
    refuse(home, "online", **settings, **{"runtime.check_rewards": False})


def test_a_reward_that_does_not_return_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf_core.rewards.trial import ask_apart

    row = {"id": "p", "prompt": [{"role": "user", "content": "hi"}], "label": None}
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"tried_rewards:sleeps' did not return within 2 s \(line \d+ of"):
        ask_apart(PythonReward(function="tried_rewards:sleeps"), [row], limit_s=2.0)
    assert time.monotonic() - began < 30


def test_rewards_are_tried_on_rows_of_the_data(home: Home, sources: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("fine", "reads_labels", "away")
    online = {
        "online.rewards": [{"kind": "python", "function": f"tried_rewards:{name}"} for name in names],
        "online.method": "grpo",
    }
    settings = {**OWN, **given(sources, "sft", "prompts"), **online, "pipeline.preference": None, "pipeline.reward_model": None}
    refuse(home, "online", **settings)


def command(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PREFECT_API_URL")}
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        env={**kept, "ALIGNFLOW_HOME": str(home), "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("place", ["file", "file/below", "my%20project", "what?", "a#b"])
def test_a_home_that_cannot_be_one_is_told_in_a_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    done = command(tmp_path / place, "plan")
    assert done.returncode == 10, done.stderr
    assert done.stderr.startswith("error: ALIGNFLOW_HOME: ") and done.stderr.count("\n") == 1


def test_a_home_with_a_space_or_half_a_percent_sign_is_one(tmp_path: Path) -> None:
    assert Home.open(tmp_path / "50% mine").root.is_dir()


def test_a_store_that_mlflow_does_not_take_is_told_in_a_line(tmp_path: Path) -> None:
    done = command(tmp_path / "h", "plan", MLFLOW_TRACKING_URI="./mlruns")
    assert done.returncode == 10
    assert done.stderr.startswith("error: MLFLOW_TRACKING_URI: './mlruns' is a file store") and done.stderr.count("\n") == 1


def test_a_prefect_that_is_gone_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"http://127.0.0.1:{free_port()}/api"
    monkeypatch.setenv("PREFECT_API_URL", address)
    with pytest.raises(ConfigError, match=f"PREFECT_API_URL: nothing answers at {address}; start that server, or unset"):
        check_prefect()
    for words in (["run", "--until", "prepare_data"], ["deploy", "tiny"]):
        done = command(tmp_path / "h", *words, PREFECT_API_URL=address)
        assert done.returncode == 10
        assert done.stderr.startswith("error: PREFECT_API_URL: ") and done.stderr.count("\n") == 1


def test_a_deployment_that_is_not_taken_is_told_in_a_line(tmp_path: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/api"
        done = command(tmp_path / "h", "deploy", "tiny", PREFECT_API_URL=address)
        server.shutdown()
        thread.join()
    assert done.returncode == 1
    assert (
        done.stderr.startswith(f"error: PREFECT_API_URL: what answers at {address} did not take") and done.stderr.count("\n") == 1
    )


def test_a_cluster_that_is_gone_is_told_in_a_line_before_it_is_asked_what_it_has(tmp_path: Path) -> None:
    done = command(tmp_path / "h", "plan", "--preset", "tiny", RAY_ADDRESS=f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 10
    assert done.stderr.startswith("error: RAY_ADDRESS: nothing listens at") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("mark", list("/:%\"'"))
def test_names_that_no_model_can_be_registered_under_are_refused(mark: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.registered_model: .*which MLflow does not take; for example llama-3"):
        resolve("quickstart", overrides={"run.registered_model": f"llama{mark}3"})


@pytest.mark.parametrize("name", ["llama-3.1", "my model", "Qwen2.5_0.5B"])
def test_names_that_a_model_can_be_registered_under_are_taken(name: str) -> None:
    from mlflow.utils.validation import _validate_model_name

    _validate_model_name(name)
    assert resolve("quickstart", overrides={"run.registered_model": name}).run.registered_model == name


def test_own_servers_are_asked_without_a_proxy_beside_what_is_excepted_already() -> None:
    assert without_proxy({"NO_PROXY": "intra.net, localhost"}) == dict.fromkeys(
        ("NO_PROXY", "no_proxy"), "intra.net,localhost,127.0.0.1"
    )


@pytest.mark.parametrize("asked", ["plan", "run"])
def test_a_tracker_that_does_not_answer_is_refused_by_plan_as_by_run(tmp_path: Path, asked: str) -> None:
    done = command(tmp_path / "h", asked, "--preset", "tiny", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 10, done.stderr
    assert done.stderr.startswith("error: MLFLOW_TRACKING_URI: nothing answers at http://127.0.0.1:9")
    assert done.stderr.count("\n") == 1


def test_rewards_of_segments_need_a_reward_model_of_segments(home: Home) -> None:
    with pytest.raises(
        ConfigError, match=r"entry 'reward_model' trains a reward model of granularity 'answer'; set pipeline\.reward_model"
    ):
        refuse(home, **{"online.credit": "segment"})
    refuse(home, **{"online.credit": "segment", "reward_model.granularity": "segment"})
