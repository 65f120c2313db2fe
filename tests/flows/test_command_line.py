"""The command line answers at once, and says what is wrong in one message with the right exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from flows.cli import main
from flows.services.environment import changed_environment

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "prefect", "mlflow", "ray", "deepspeed", "vllm", "pyarrow", "pandas")


def _process(home: Path, *arguments: str, cwd: Path | None = None, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ALIGNFLOW_HOME": str(home), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)


class Answer(NamedTuple):
    """What a command printed, and how it ended."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Answer]


@pytest.fixture
def alignflow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command in this process: that it needs seconds to start is nothing that these tests are about."""

    def run(home: Path, *arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["alignflow", *arguments])
        code: str | int | None = 0
        with changed_environment():
            os.environ["ALIGNFLOW_HOME"] = str(home)
            try:
                main()
            except SystemExit as end:
                code = end.code
        assert code is None or isinstance(code, int)
        return Answer(code or 0, *capsys.readouterr())

    return run


def test_help_needs_none_of_the_heavy_libraries() -> None:
    code = (
        "import sys; sys.argv = ['alignflow', '--help']\n"
        "from flows.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        f"print('LOADED', [name for name in {HEAVY} if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    assert "LOADED []" in answer.stdout
    for command in (
        "run",
        "plan",
        "graph",
        "presets",
        "adopt",
        "deploy",
        "up",
        "status",
        "down",
        "doctor",
        "fetch",
        "report",
        "cache",
        "runs",
        "logs",
        "cancel",
        "show",
        "export",
        "chat",
    ):
        assert f" {command} " in answer.stdout


def test_help_answers_within_the_time_people_notice(tmp_path: Path) -> None:
    def seconds() -> float:
        began = time.perf_counter()
        assert _process(tmp_path, "--help").returncode == 0
        return time.perf_counter() - began

    assert min(seconds() for _ in range(5)) < 0.7


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--preset", "quikstart"], "did you mean 'quickstart'"),
        (["run", "--set", "online.kl_coeff=1"], "did you mean 'kl_coef'"),
        (["run", "--set", "online.kl_coef"], "expected section.field=value"),
        (["run", "--config", "missing.yaml"], "no file at missing.yaml"),
        (["run", "--until", "evaluat"], "did you mean 'evaluate'"),
        (["plan", "--from", "ppo"], "allowed are base, base_model"),
        (["plan", "--from", "sft"], "base: never run here"),
        (["graph", "--set", "pipeline.online.model=stf"], "did you mean 'sft'"),
        (["adopt", "sft", "--set", "pipeline.sft.stage=stf"], "did you mean 'sft'"),
        (["deploy", "quickstart"], "no Prefect server is known"),
        (["plan", "--set", "model.path=/no/such/folder"], "/no/such/folder"),
        (["report", "nightly"], "got 'nightly'"),
        (["cache", "why", "latest", "sft"], "runs in"),
        (["fetch", "smollm"], "by name are smollm2-135m, tiny-random"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_10(tmp_path: Path, alignflow: Command, arguments: list[str], said: str) -> None:
    answer = alignflow(tmp_path, *arguments)
    assert answer.returncode == 10, answer.stderr
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr
    assert answer.stderr.startswith("error: ")


def test_plan_lists_every_node_and_runs_nothing(tmp_path: Path, alignflow: Command) -> None:
    answer = alignflow(tmp_path / "home", "plan", "--preset", "quickstart")
    assert answer.returncode == 0, answer.stderr
    for node in ("base", "data", "convert_reward_model", "online", "evaluate_preference", "compare"):
        assert node in answer.stdout
    assert "15 of 15 stages run" in answer.stdout
    assert "compares preference, online with sft; decides by procedures.score" in answer.stdout
    computed = re.search(
        r"computes in (bf16|fp32): sft, reward_model, preference, online, evaluate$", answer.stdout, re.MULTILINE
    )
    assert computed is not None, answer.stdout
    assert f"dtype auto is {computed[1]}" in " ".join(alignflow(tmp_path / "home", "doctor").stdout.split())
    assert list((tmp_path / "home" / "store").iterdir()) == []


def test_plan_names_an_entry_that_nothing_uses_and_the_metric_that_is_left(tmp_path: Path, alignflow: Command) -> None:
    row = {"prompt": "2 + 2?", "response": "4", "chosen": "4", "rejected": "5"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    tables = [
        part
        for table in ("sft", "preference", "prompts")
        for part in ("--set", f"data.{table}=[{{path: {tmp_path}/rows.jsonl}}]")
    ]
    without_task = [*tables, "--set", "data.procedures=null", "--set", "online.rewards=[{kind: reward_model}]"]
    unused = ["--set", "pipeline.rm2={stage: reward_model}", "--set", "pipeline.online.reward_model=reward_model"]
    scorer = ["--set", "evaluate.reward_model=reward_model"]
    answer = alignflow(tmp_path, "plan", *without_task, *unused, *scorer)
    assert answer.returncode == 0, answer.stderr
    assert "decides by reward" in answer.stdout
    assert "warning: nothing uses entry 'rm2'" in answer.stdout
    part = alignflow(tmp_path, "plan", "--preset", "tiny", "--until", "convert")
    assert part.returncode == 0 and "nothing uses" not in part.stdout, "what is left out this time has its use"


def test_graph_says_what_each_node_is_made_from_and_presets_what_there_is(tmp_path: Path, alignflow: Command) -> None:
    graph = alignflow(tmp_path, "graph", "--set", "pipeline.online.each.seed=[1, 2]").stdout
    assert [line.split()[1:] for line in graph.splitlines() if line.startswith("online@seed=2 ")] == [
        ["online", "model:", "convert_sft,", "data,", "reward_model:", "convert_reward_model"]
    ]
    (tmp_path / "presets").mkdir(exist_ok=True)
    (tmp_path / "presets" / "mine.yaml").write_text("# My own.\nextends: tiny\n")
    presets = alignflow(tmp_path, "presets").stdout
    assert "My own." in presets and "quickstart" in presets


def test_status_and_down_without_services_say_so(tmp_path: Path, alignflow: Command) -> None:
    assert "not started" in alignflow(tmp_path, "status").stdout
    assert "nothing of ours was running" in alignflow(tmp_path, "down").stdout


def _write_readme_example(folder: Path) -> str:
    """The file of the example, with files where it names some; `my_rewards` lies in the folder that the command is given in."""
    page = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```yaml\n# my\.yaml\n(.*?)```", page, flags=re.DOTALL)
    pairs = [{"prompt": f"{n} + 2?", "chosen": f"{n + 2}", "rejected": "no"} for n in range(40)]
    chats = [
        {"messages": [{"role": "user", "content": p["prompt"]}, {"role": "assistant", "content": p["chosen"]}]} for p in pairs
    ]
    (folder / "pairs").mkdir()
    for path, rows in {"chat.jsonl": chats, "pairs/1.jsonl": pairs}.items():
        (folder / path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prompts.csv").write_text("prompt\n" + "".join(f"{p['prompt']}\n" for p in pairs))
    (folder / "my_rewards.py").write_text("def score(prompts, responses, labels):\n    return [0.0 for _ in responses]\n")
    (folder / "my.yaml").write_text(example.replace("/models/my-base", "tiny-random").replace("/data", str(folder)))
    return str(folder / "my.yaml")


def test_the_example_of_the_readme_is_planned_as_it_is_written(tmp_path: Path) -> None:
    answer = _process(tmp_path, "plan", "--config", _write_readme_example(tmp_path), cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "decides by reward" in answer.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_example_of_the_readme_runs_to_its_end_as_it_is_written(tmp_path: Path) -> None:
    """With the few steps of the smallest preset below it."""
    home = tmp_path / "home"
    command = ("run", "--preset", "tiny", "--config", _write_readme_example(tmp_path), "--set", "runtime.executor=subprocess")
    answer = _process(home, *command, cwd=tmp_path, timeout_s=800)
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    [verdict] = home.glob("runs/*/verdict.json")
    assert json.loads(verdict.read_text())["primary_metric"] == "reward"
    assert (verdict.parent / "report.html").is_file()
