"""A stage of the user's own, from a package outside the checkout: run, keyed by its code, refused where it is wrong."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_processing.errors import ConfigError
from flows.commands.actions import Asked
from flows.commands.past_runs import adopt_node
from flows.graph.build import build_graph
from flows.graph.plan import Plan, make_plan
from flows.graph.selection import select
from flows.running.pipeline import run_pipeline
from flows.services.shown_later import ShownLater
from flows.settings.config import PipelineConfig
from flows.settings.presets import resolve
from tasks.runtime.contract.home import Home
from tasks.runtime.keys.closure import Code
from tasks.runtime.keys.stage_key import explain_difference
from tasks.runtime.store.artifacts import Store
from tasks.runtime.store.records import NodeRecord

pytestmark = pytest.mark.seconds

STAGES = '''
from pydantic import Field

from data_processing.settings import Settings
from my_desk.words import shout
from tasks.runtime.contract.context import Input, Stage, StageContext


class CountConfig(Settings):
    """What is counted."""

    table: str = Field("sft", description="Table whose rows are counted")


def count(context: StageContext[CountConfig]) -> None:
    files = sorted((context.inputs["data"] / context.config.table).glob("*.parquet"))
    (context.output / "count.txt").write_text(shout(f"{context.config.table}: {len(files)} files"))


COUNT = Stage(name="count", kind="count", config=CountConfig, inputs={"data": Input("data", default="data")}, run=count)
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "elsewhere" / "my_desk"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "stages.py").write_text(STAGES)
    (folder / "words.py").write_text("def shout(text):\n    return text.upper()\n")
    (folder / "unused.py").write_text("ANSWER = 42\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setenv("PYTHONPATH", f"{folder.parent}:{Path(__file__).resolve().parents[2]}")
    yield folder
    for name in [name for name in list(sys.modules) if name.partition(".")[0] == "my_desk"]:
        del sys.modules[name]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALIGNFLOW_HOME", str(tmp_path / "home"))
    return Home.open(tmp_path / "home")


def _config(**count: Any) -> PipelineConfig:
    entries = {"base": None, "online": None, "preference": None, "reward_model": None, "sft": None}
    entry = {"stage": "my_desk.stages:COUNT", **count}
    overrides = {f"pipeline.{name}": value for name, value in entries.items()}
    overrides["pipeline.base"] = {"stage": "base_model", "evaluate": False}
    overrides["pipeline.count"] = entry
    return resolve("tiny", overrides={**overrides, "runtime.executor": "subprocess"})


def _plan(config: PipelineConfig, home: Home) -> Plan:
    return make_plan(config, select(build_graph(config), until_stage="count"), home, Code())


def test_a_stage_of_ones_own_is_an_entry_like_any_other(package: Path, home: Home, caplog: pytest.LogCaptureFixture) -> None:
    config = _config(set={"table": "prompts"})
    with caplog.at_level("WARNING", logger="alignflow"):
        _run(config, home)
    told = [record.getMessage() for record in caplog.records if "nothing uses entry" in record.getMessage()]
    assert [line.split("'")[1] for line in told] == ["base"], "what the run leaves out but others use is not named"
    [made] = (home.store / "count").glob("*/count.txt")
    assert made.read_text() == "PROMPTS: 3 FILES"
    assert not _plan(config, home)["count"].runs
    made.unlink()
    assert _plan(config, home)["count"].reason.startswith("not finished, or not kept, since tiny-")


def test_its_code_and_what_that_imports_of_its_package_are_in_its_key(package: Path, home: Home) -> None:
    before = _plan(_config(), home)["count"].key
    (package / "unused.py").write_text("ANSWER = 43\n")
    assert _plan(_config(), home)["count"].key.key == before.key
    (package / "words.py").write_text("def shout(text):\n    return text.lower()\n")
    after = _plan(_config(), home)["count"].key
    assert [line.partition(":")[0] for line in explain_difference(before.description, after.description)] == [
        "code.my_desk.words"
    ]


def _run(config: PipelineConfig, home: Home) -> None:
    selection = select(build_graph(config), until_stage="count")
    asyncio.run(
        run_pipeline(
            config, selection, make_plan(config, selection, home, Code()), home, ShownLater({}), preset="tiny", code=Code()
        )
    )


def _adopt(tmp_path: Path, home: Home, name: str, **count: Any) -> None:
    file = tmp_path / "adopt.yaml"
    file.write_text(_config(**count).model_dump_json())  # JSON is YAML
    adopt_node(Asked(str(file), None, [], None, name, []))


def test_a_result_is_taken_over_when_only_code_has_changed_and_says_so(
    package: Path, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(_config(), home)
    (package / "words.py").write_text("def shout(text: str) -> str:\n    return text.upper()\n")
    reason = _plan(_config(), home)["count"].reason
    assert reason.startswith("code.my_desk.words: ") and ";" not in reason
    _adopt(tmp_path, home, "count")
    assert "count: taken over from tiny-" in capsys.readouterr().out
    adopted = _plan(_config(), home)["count"]
    assert adopted.reason.endswith("adopted over changes of code.my_desk.words")
    assert adopted.hit is not None and adopted.hit.adopted is not None
    folder = home.store / "count"
    assert (folder / adopted.key.key / "count.txt").samefile(folder / adopted.hit.adopted.key / "count.txt")
    assert Store(home.store).verify("count", adopted.key.key, full=True) == []
    _run(_config(), home)
    newest = max(home.runs.glob("*/nodes/count.json"), key=lambda path: path.stat().st_mtime_ns)
    assert NodeRecord.model_validate_json(newest.read_text()).adopted == ["code.my_desk.words"]


def test_a_result_made_with_other_settings_is_not_taken_over(package: Path, home: Home, tmp_path: Path) -> None:
    _run(_config(), home)
    with pytest.raises(ConfigError, match=r"differs in more than code: config\.table: \"sft\" -> \"prompts\""):
        _adopt(tmp_path, home, "count", set={"table": "prompts"})
    with pytest.raises(ConfigError, match="did you mean 'count'"):
        _adopt(tmp_path, home, "cuont")


@pytest.mark.parametrize(
    ("count", "said"),
    [
        ({"set": {"tabel": "sft"}}, ["pipeline.count.set.tabel", "did you mean 'table'"]),
        ({"model": "base"}, ["pipeline.count", "no input 'model'", "its inputs are data"]),
        ({"data": "base"}, ["pipeline.count.data", "'base' makes a policy"]),
        ({"stage": "my_desk.stages:COUNTS"}, ["pipeline.count.stage", "COUNTS"]),
        ({"stage": "my_desk.stages:count"}, ["pipeline.count.stage", "expected a Stage"]),
        ({"stage": "my_deks.stages:COUNT"}, ["pipeline.count.stage", "my_deks"]),
    ],
)
def test_a_wrong_one_is_answered_as_any_entry_is(package: Path, count: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build_graph(_config(**count))
    assert [text for text in said if text not in str(caught.value)] == [], str(caught.value)
