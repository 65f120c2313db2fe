"""What is refused before anything is submitted, what is estimated, and what a verdict looks like."""

from __future__ import annotations

import base64
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, CTRLConfig

from data_processing.errors import ConfigError, DivergedError
from flows.graph.build import build_graph
from flows.graph.estimates import estimate, parameters_of
from flows.graph.plan import Plan, make_plan
from flows.graph.selection import select
from flows.running.check_servers import check_mlflow, check_ray
from flows.running.checks import check_before_start
from flows.running.failures import explained
from flows.running.results import markdown, verdict_table
from flows.running.run_folder import NodeTimes, RunFolder, overhead_s
from flows.services.processes import free_port
from flows.settings.presets import resolve
from rlhf_core.models.packaged import fetch_named
from tasks.runtime.contract.home import Home
from tasks.runtime.keys.closure import Code

QUICKSTART = resolve("quickstart")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALIGNFLOW_HOME", str(tmp_path))
    return Home.open(tmp_path)


def _plan(home: Home, **overrides: Any) -> tuple[Any, Plan]:
    config = resolve("quickstart", overrides=overrides)
    return config, make_plan(config, select(build_graph(config)), home, Code())


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("RAY_ADDRESS", "127.0.0.1:6379", r"RAY_ADDRESS: got '127\.0\.0\.1:6379'; allowed is the http address"),
        ("RAY_ADDRESS", "http://127.0.0.1:{port}", r"RAY_ADDRESS: nothing listens at http://127\.0\.0\.1"),
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:{port}", r"MLFLOW_TRACKING_URI: nothing answers at http://127\.0\.0\.1"),
    ],
)
def test_a_server_that_does_not_answer_is_named(
    home: Home, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value.format(port=free_port()))
    with pytest.raises(ConfigError, match=said):
        check_before_start(*_plan(home), home)


def test_too_little_disk_is_answered_with_what_is_there_and_what_to_do(home: Home) -> None:
    with pytest.raises(ConfigError, match=r"runtime\.min_free_disk_gib: 1e\+09 GiB wanted, .* GiB free at"):
        check_before_start(*_plan(home, **{"runtime.min_free_disk_gib": 1e9}), home)


def test_a_reward_function_that_cannot_be_imported_is_named(home: Home) -> None:
    rewards = [{"kind": "python", "function": "no_such_module:reward"}]
    with pytest.raises(ConfigError, match="no_such_module"):
        check_before_start(*_plan(home, **{"online.rewards": rewards}), home)


def test_a_model_folder_without_weights_is_refused(home: Home, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "models", "llama")
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(ConfigError, match="weights"):
        check_before_start(*_plan(home, **{"model.path": str(folder)}), home)


@pytest.mark.parametrize(("method", "without"), [("grpo", []), ("ppo", ["pipeline.reward_model"])])
def test_a_model_that_cannot_give_scores_is_refused_only_where_scores_are_trained(
    home: Home, tmp_path: Path, method: str, without: list[str]
) -> None:
    rewards = [{"kind": "procedures"}]
    settings: dict[str, Any] = {
        "model.path": str(classifying_otherwise(tmp_path)),
        "online.rewards": rewards,
        "evaluate.metrics": ["perplexity"],
    }
    check_before_start(*_plan(home, **settings, **{"online.method": "grpo", "pipeline.reward_model": None}), home)
    with pytest.raises(ConfigError, match="CTRLForSequenceClassification has no linear head 'score'"):
        check_before_start(*_plan(home, **settings, **{"online.method": method, **dict.fromkeys(without)}), home)


def classifying_otherwise(tmp_path: Path) -> Path:
    """A causal language model whose classifier in transformers has another head than those that scores are read from."""
    tokenizer = tiny_tokenizer("llama")
    config = CTRLConfig(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, dff=16, n_positions=64)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "ctrl")
    tokenizer.save_pretrained(tmp_path / "ctrl")
    return tmp_path / "ctrl"


class _AsksForALogin(BaseHTTPRequestHandler):
    """What stands before MLflow at many places: no answer without user and password."""

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == f"Basic {base64.b64encode(b'me:secret').decode()}"
        body = b'{"experiments": []}' if known else b"who are you?"
        self.send_response(200 if known else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def guarded() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _AsksForALogin)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("how", ["in the address", "in variables"])
def test_an_mlflow_that_asks_for_a_login_is_taken_with_one(
    home: Home, monkeypatch: pytest.MonkeyPatch, guarded: str, how: str
) -> None:
    if how == "in variables":
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    login = "me:secret@" if how == "in the address" else ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{login}{guarded}")
    check_mlflow(home)


def test_an_mlflow_that_refuses_the_login_is_told_in_a_line_without_the_password(
    home: Home, monkeypatch: pytest.MonkeyPatch, guarded: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:wrong@{guarded}")
    with pytest.raises(
        ConfigError, match=f"MLFLOW_TRACKING_URI: http://{guarded} refuses the login: .*401.*MLFLOW_TRACKING_USERNAME"
    ) as told:
        check_mlflow(home)
    assert "wrong" not in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("address", ["https://ray.invalid", "http://127.0.0.1", "https://ray.invalid/prefix"])
def test_a_ray_address_needs_no_port(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS: nothing listens at {address}"):
        check_ray()


def test_a_tracking_address_that_tracks_nothing_is_refused_also_where_everything_is_cached(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(ConfigError, match=r"MLFLOW_TRACKING_URI: './mlruns' is a file store"):
        check_before_start(resolve("quickstart"), {}, home)


def test_a_model_has_one_key_however_its_folder_is_spelled(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model(tmp_path / "models", "llama")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    spellings = (str(folder), f"{folder}/", "./link", "link", f"models/../models/{folder.name}", str(tmp_path / "link"))
    keys = {_plan(home, **{"model.path": path})[1]["compare"].key.key for path in spellings}
    assert len(keys) == 1


@pytest.mark.seconds
@pytest.mark.parametrize("plans", [1, 2])
def test_a_plan_loads_transformers_once_for_a_folder(home: Home, tmp_path: Path, plans: int) -> None:
    folder = tiny_model(tmp_path / "models", "llama")
    code = (
        "import sys; from flows.cli import main\n"
        f"sys.argv = ['alignflow', 'plan', '--preset', 'tiny', '--set', 'model.path={folder}']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print('torch' in sys.modules)"
    )
    for _ in range(plans):
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ran.stdout.splitlines()[-1] == str(plans == 1)


def test_parameters_are_counted_in_the_files_without_loading_them(tmp_path: Path) -> None:
    from safetensors import safe_open

    folder = tiny_model(tmp_path, "qwen3")
    with safe_open(folder / "model.safetensors", "pt") as file:
        counted = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert parameters_of(str(folder)) == counted
    assert parameters_of("smollm2-135m") == 134_515_008
    assert parameters_of(str(tmp_path / "nowhere")) is None
    with pytest.raises(ConfigError, match="no weights"):
        parameters_of(str(tmp_path))


def test_the_tiny_random_model_has_as_many_parameters_as_is_said(tmp_path: Path) -> None:
    made = fetch_named("tiny-random", tmp_path)
    assert parameters_of(str(made)) == parameters_of("tiny-random")
    assert (
        fetch_named("tiny-random", tmp_path / "again").joinpath("model.safetensors").read_bytes()
        == (made / "model.safetensors").read_bytes()
    )


def test_estimates_grow_with_the_model_and_the_work() -> None:
    longer = resolve("quickstart", overrides={"online.steps": 2 * QUICKSTART.online.steps})
    nodes = build_graph(QUICKSTART)
    for name in ("sft", "reward_model", "preference", "online", "evaluate_sft"):
        small, large = (estimate(nodes[name], QUICKSTART, n) for n in (10**8, 10**9))
        assert small.memory_gib < large.memory_gib
        assert small.seconds is not None and large.seconds is not None and small.seconds < large.seconds
    once, twice = (estimate(build_graph(config)["online"], config, 10**8).seconds for config in (QUICKSTART, longer))
    assert once is not None and twice is not None and 1.5 * once < twice < 2 * once


def test_a_stage_on_a_gpu_has_no_estimated_time() -> None:
    config = resolve("quickstart", overrides={"sft.engine.gpus_per_rank": 1})
    assert estimate(build_graph(config)["sft"], config, 10**8).seconds is None


def test_overhead_is_the_time_in_which_no_stage_worked() -> None:
    nodes = {"a": NodeTimes(10.0, 20.0, 8.0), "b": NodeTimes(15.0, 30.0, 15.0), "c": NodeTimes(35.0, 36.0, 0.0)}
    assert overhead_s(5.0, 40.0, nodes) == pytest.approx((5 + 5 + 4) + 2 + 0 + 1)


def test_the_first_failure_decides_the_exit_code_and_names_the_rest(home: Home) -> None:
    errors = {"online": DivergedError("reward is nan at step 2"), "preference": RuntimeError("worker died")}
    error = explained(errors, ["compare"], RunFolder(home, "r"))
    assert error.exit_code == 12
    for text in ("stage 'online'", "reward is nan at step 2", "preference", "compare", "learning rate", str(home.runs / "r")):
        assert text in str(error)


def test_a_verdict_becomes_a_table_of_means_with_intervals() -> None:
    def interval(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 64}

    table = verdict_table(
        {
            "models": {
                name: {
                    "sampled": {"procedures.score": interval(m), "length": interval(100)},
                    "greedy": {"procedures.score": interval(m)},
                }
                for name, m in (("sft", 0.25), ("online", 0.5))
            },
            "paired": {"online": {"sampled": {"procedures.score": interval(0.25)}}},
            "challenger": "online",
            "reason": "online is better",
            "primary_metric": "procedures.score",
            "decoding": "sampled",
            "baseline": "sft",
        }
    )
    assert table.columns == (
        "model",
        "procedures.score (sampled)",
        "procedures.score (greedy)",
        "length (sampled)",
        "procedures.score vs sft",
    )
    assert table.rows[1] == ("online", "0.5 [0.45, 0.55]", "0.5 [0.45, 0.55]", "100 [100, 100]", "+0.25 [+0.2, +0.3]")
    assert table.rows[0][-1] == "–"
    text = markdown(table, "run-1", "file:///report.html", "http://tracker/#/runs/1")
    assert "MLflow: [run-1](http://tracker/#/runs/1)" in text
    assert "| online | 0.5 [0.45, 0.55] |" in text
    assert "challenger: online. online is better" in text
