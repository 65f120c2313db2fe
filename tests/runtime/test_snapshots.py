"""What runs is the code that made the key, whatever happens to the checkout and the user's files meanwhile."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_processing.settings import Settings
from tasks.runtime.contract.config import RuntimeConfig
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.request import StageOutcome, StageRequest
from tasks.runtime.execution.start import Runtime, key_of, run_stage
from tasks.runtime.execution.subprocess_executor import SubprocessExecutor
from tasks.runtime.keys import snapshot
from tasks.runtime.keys.closure import OWN_PACKAGES, PROJECT_ROOT, Code
from tasks.runtime.keys.snapshot import take_snapshot

STAGE = """
from pathlib import Path
import rlhf_core, tasks.runtime.worker
from tasks.runtime.contract.context import Stage
from tests.runtime.stages import JoinConfig
from words_of_mine.said import WORD

def run(context):
    beside = (Path(__file__).parent / "beside.txt").read_text()
    (context.output / "said.json").write_text(__import__("json").dumps({
        "word": WORD, "beside": beside, "ours": rlhf_core.__file__, "worker": tasks.runtime.worker.__file__}))

SAY = Stage(name="say", kind="text", config=JoinConfig, run=run)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder with a stage, a file beside it and a package of its own."""
    folder = tmp_path / "mine"
    (folder / "words_of_mine").mkdir(parents=True)
    (folder / "say_stage.py").write_text(STAGE)
    (folder / "beside.txt").write_text("beside")
    (folder / "words_of_mine" / "said.py").write_text("WORD = 'first'\n")
    (folder / "large.bin").write_bytes(bytes((1 << 20) + 1))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    yield folder
    for name in ("say_stage", "words_of_mine", "words_of_mine.said"):
        sys.modules.pop(name, None)


def _say(home: Home, code: Code, settings: RuntimeConfig) -> tuple[StageOutcome, dict[str, str]]:
    request = StageRequest("say_stage:SAY", "say", _config(), "run")
    outcome = asyncio.run(run_stage(request, Runtime(home, SubprocessExecutor(), settings, code)))
    said: dict[str, str] = json.loads((home.store / outcome.ref.kind / outcome.ref.key / "said.json").read_text())
    return outcome, said


def _config() -> Settings:
    from tests.runtime.stages import JoinConfig

    return JoinConfig()


def test_an_edit_between_plan_and_start_is_not_run_under_the_old_key(mine: Path, home: Home, settings: RuntimeConfig) -> None:
    planned = Code(take_snapshot(home.code, ["say_stage"]))
    key = key_of(StageRequest("say_stage:SAY", "say", _config(), "run"), planned).key
    (mine / "words_of_mine" / "said.py").write_text("WORD = 'other'\n")
    (mine / "beside.txt").write_text("behind")
    outcome, said = _say(home, planned, settings)
    assert outcome.ref.key == key
    assert (said["word"], said["beside"]) == ("first", "beside")
    assert Path(said["ours"]).is_relative_to(planned.root)
    assert Path(said["worker"]).is_relative_to(planned.root)

    edited = Code(take_snapshot(home.code, ["say_stage"]))
    outcome, said = _say(home, edited, settings)
    assert outcome.ref.key != key
    assert said["word"] == "other"


def test_a_snapshot_has_the_keys_of_the_checkout(mine: Path, home: Home) -> None:
    request = StageRequest("say_stage:SAY", "say", _config(), "run")
    assert key_of(request, Code(take_snapshot(home.code, ["say_stage"]))) == key_of(request)


def test_a_snapshot_is_made_once_and_holds_what_code_needs(mine: Path, home: Home) -> None:
    (mine / "just.bin").write_bytes(bytes(1 << 20))
    for name in (".env", "stranger.py"):
        (mine / name).write_text("")
    place = take_snapshot(home.code, ["say_stage", "tasks.sft"])
    assert take_snapshot(home.code, ["say_stage"]) == place
    assert [path.name for path in home.code.iterdir() if not path.name.startswith(".")] == [place.name]
    assert (place / "beside.txt").is_file()
    assert not (place / "large.bin").exists()
    assert (place / "just.bin").is_file()
    assert not (place / ".env").exists(), "secrets lie in such"
    assert not (place / "stranger.py").exists(), "code goes by import alone"
    ours = {path.relative_to(PROJECT_ROOT) for name in OWN_PACKAGES for path in (PROJECT_ROOT / name).rglob("*.jinja")}
    assert ours
    assert all((place / path).is_file() for path in ours)


@pytest.mark.parametrize(("limit_bytes", "taken"), [(6, True), (5, False)])
def test_what_lies_beside_code_is_left_where_it_is_too_much_together(
    mine: Path, home: Home, monkeypatch: pytest.MonkeyPatch, limit_bytes: int, taken: bool
) -> None:
    monkeypatch.setattr(snapshot, "_DATA_BYTES", limit_bytes)
    assert (take_snapshot(home.code, ["say_stage"]) / "beside.txt").is_file() is taken


def test_a_snapshot_whose_writer_was_killed_is_not_taken(home: Home) -> None:
    (home.code / ".part-left").mkdir()
    assert (take_snapshot(home.code, []) / "rlhf_core" / "precision.py").is_file()
