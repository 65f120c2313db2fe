"""Environments of the library verifiers answer here as they do in its own rollouts, and what goes wrong in them is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_processing.config import TableSource
from data_processing.errors import ConfigError
from data_processing.sources.from_verifiers import read_environment, version_of_environment
from rlhf_core.environments.from_verifiers import _completion
from rlhf_core.environments.host import EnvironmentFailedError, Host
from rlhf_core.recipes.online.conversations import tools_of
from rlhf_core.settings.environment import EnvironmentSettings
from tasks.online import modules
from tasks.prepare_data import modules as modules_of_data

LIBRARY = Path(__file__).parent / "library"
pytestmark = pytest.mark.seconds


@pytest.fixture(autouse=True)
def _games_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(LIBRARY))


@contextmanager
def hosted(kind: str, **more: Any) -> Iterator[Host]:
    host = Host(*EnvironmentSettings(verifiers="desk-games", options={"kind": kind, **more}).hosted)
    try:
        yield host
    finally:
        host.close()


def rows(**options: Any) -> list[dict[str, Any]]:
    source = TableSource(path="desk-games", kind="verifiers", options=options)
    return sorted((raw.values or {} for raw in read_environment(source, "data.prompts[0]")), key=lambda row: str(row["answer"]))


def begun(host: Host, number: int, row: Mapping[str, Any]) -> None:
    columns = {name: value for name, value in row.items() if name not in ("prompt", "answer")}
    host.ask(number, "reset", {"prompt": row["prompt"], "label": row["answer"], "columns": columns}).result(60)


def said(host: Host, number: int, text: str, **more: Any) -> dict[str, Any]:
    turn = {"role": "assistant", "content": text, **more}
    answer: dict[str, Any] = host.ask(number, "step", {"turn": turn}).result(60)
    return answer


def library_says(kind: str, row: Mapping[str, Any], turns: Sequence[dict[str, Any]]) -> tuple[list[Any], float, dict[str, float]]:
    """The same turns through the library's own loop."""
    import desk_games

    environment: Any = desk_games.load_environment(kind)
    left = list(turns)

    async def create(**_: Any) -> Any:
        return _completion(left.pop(0), len(left))

    async def run() -> Any:
        client: Any = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
        state = await environment.rollout(dict(row), client, "any", {})
        await environment.rubric.score_rollout(state)
        return state

    state = asyncio.run(run())
    return state["completion"], state["reward"], state["metrics"]


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        ("single", ["It is 2"]),
        ("single", ["It is something that I could not say in a few words"]),
        ("guess", ["1", "3", "2"]),
        ("guess", ["1", "1", "1", "1", "1"]),
        ("several", ["It is 2"]),
    ],
)
def test_a_conversation_earns_what_the_library_would_give(kind: str, texts: list[str]) -> None:
    row = next(row for row in rows(kind=kind) if row["answer"] == "2" and row["task"] != "two")
    turns = [{"role": "assistant", "content": text} for text in texts]
    said_there, reward, metrics = library_says(kind, row, turns)
    with hosted(kind) as host:
        begun(host, 1, row)
        answers = [said(host, 1, text) for text in texts]
    assert [answer["done"] for answer in answers] == [False] * (len(texts) - 1) + [True]
    assert answers[-1]["reward"] == reward and answers[-1]["metrics"] == metrics
    replies = [message["content"] for answer in answers[:-1] for message in answer["messages"]]
    assert replies == [message["content"] for message in said_there if message["role"] == "user"][: len(replies)]
    assert all(answer["reward"] is None for answer in answers[:-1])


def test_conversations_are_held_side_by_side() -> None:
    given = rows(kind="guess")
    with hosted("guess") as host:
        for number in (0, 3):
            begun(host, number, given[number])
        assert said(host, 0, "1")["messages"] == [{"role": "user", "content": "lower"}]
        assert said(host, 3, "1")["messages"] == [{"role": "user", "content": "higher"}]
        assert said(host, 3, "3")["done"] and said(host, 0, "it is 0")["done"]


def test_tools_are_called_with_what_the_policy_gives() -> None:
    settings = EnvironmentSettings(verifiers="desk-games", options={"kind": "tools"}, tool_parser="hermes")
    [tool] = tools_of(settings) or ()
    assert tool["function"]["name"] == "add" and set(tool["function"]["parameters"]["properties"]) == {"a", "b"}
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
    wrong = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    with hosted("tools") as host:
        begun(host, 1, rows(kind="tools")[2])
        answer = said(host, 1, "", tool_calls=[call, wrong])
        assert [message["role"] for message in answer["messages"]] == ["tool", "tool"] and answer["messages"][0]["content"] == "5"
        assert "missing 1 required positional argument" in answer["messages"][1]["content"]
        end = said(host, 1, "2")
    assert end["done"] and end["reward"] == 1.5 and end["metrics"]["total_tool_calls"] == 2


def test_a_turn_that_says_nothing_is_scored() -> None:
    with hosted("single") as host:
        begun(host, 1, rows()[1])
        assert said(host, 1, "")["reward"] == 0.5


@pytest.mark.parametrize(
    ("kind", "texts", "why"),
    [
        ("angry", ["I am angry"], "KeyError: 'no such mood'"),
        ("rewrites", ["a"], "rewrites what has been said"),
        ("guess", ["no number"], "ValueError: invalid literal"),
    ],
)
def test_what_breaks_is_told_and_earns_nothing(kind: str, texts: list[str], why: str) -> None:
    with hosted(kind) as host:
        begun(host, 1, rows(kind=kind)[0])
        with pytest.raises(EnvironmentFailedError, match=why):
            for text in texts:
                said(host, 1, text)


def test_a_rollout_that_does_not_begin_is_told() -> None:
    with hosted("broken") as host, pytest.raises(EnvironmentFailedError, match="OSError: the board is not there"):
        begun(host, 1, rows(kind="broken")[0])


def test_prompts_of_another_table_are_told_from_the_environments_own() -> None:
    with hosted("several") as host:
        begun(host, 1, {"prompt": [{"role": "user", "content": "mine"}], "answer": "1", "task": "one"})
        assert said(host, 1, "1")["reward"] == 1.5


def test_a_conversation_that_is_cut_is_cleaned_up(tmp_path: Path) -> None:
    told = tmp_path / "told"
    with hosted("cleans", left_at=str(told)) as host:
        begun(host, 1, rows(kind="guess")[0])
        assert not said(host, 1, "3")["done"] and not told.exists()
        host.ask(1, "end").result(60)
        host.ask(2, "tools").result(60)
        for _ in range(100):
            if told.exists():
                break
            asyncio.run(asyncio.sleep(0.05))
        assert told.read_text() == "put away\n"


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("desk-games", {"kind": "groups"}, "'best_of_all' scores a group of rollouts together"),
        ("desk-games", {"kind": "texts"}, "only those that hold a chat can be used"),
        ("desk-games", {"kind": "chess"}, "does not load with {'kind': 'chess'}"),
        ("desk-toys", {}, "Could not import 'desk-toys' environment"),
    ],
)
def test_what_cannot_be_used_says_so(name: str, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        tools_of(EnvironmentSettings(verifiers=name, options=options))


def test_rows_are_those_of_the_library() -> None:
    given = rows(kind="single", rows=6)
    assert [row["answer"] for row in given] == [str(n) for n in range(6)]
    for row in given:
        assert row["prompt"][0] == {"role": "system", "content": "Answer."}
        assert row["prompt"][1] == {"role": "user", "content": f"Which number is {row['answer']}?"}
        assert json.loads(row["info"]) == {"level": int(row["answer"])}
    assert given == rows(kind="single", rows=6)


def test_an_environment_of_ones_own_is_in_the_keys() -> None:
    source = TableSource(path="desk-games", kind="verifiers")
    assert version_of_environment(source, "data.prompts[0]").startswith("verifiers ")
    from data_processing.config import DataConfig
    from rlhf_core.settings.online import OnlineConfig

    assert modules_of_data(DataConfig(prompts=[source])) == ["desk_games"]
    online = OnlineConfig(environment={"verifiers": "desk-games"}, rewards=[{"kind": "environment"}])
    assert "desk_games" in modules(online) and online.environment.libraries == ["verifiers"]
    with pytest.raises(ConfigError, match="there is no module 'desk_toys'"):
        version_of_environment(TableSource(path="desk-toys", kind="verifiers"), "data.prompts[0]")


def test_one_environment_a_response() -> None:
    with pytest.raises(ValueError, match="both given"):
        EnvironmentSettings(path="a:B", verifiers="desk-games")
