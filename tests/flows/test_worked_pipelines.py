"""The pipelines of docs/pipelines.md: each is planned, and what the page says of it holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from evaluation.config import CompareConfig
from flows.graph.build import build_graph
from flows.graph.nodes import Graph
from flows.graph.plan import make_plan
from flows.graph.selection import select
from flows.settings.presets import resolve
from tasks.runtime.contract.home import Home
from tasks.runtime.keys.closure import Code

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, *OTHERS = ((DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("pipelines", "methods", "rewards", "credit"))
PIPELINES, OF_METHODS = (
    dict(re.findall(r"<!-- (\w+) -->\n```yaml\n(.*?)```", page, flags=re.DOTALL)) for page in (PAGE, "".join(OTHERS))
)


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (Path(__file__).resolve().parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    [stages] = re.findall(r"```python\n# my_desk/stages\.py\n(.*?)```", code, flags=re.DOTALL)
    folder = tmp_path / "elsewhere" / "my_desk"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "words.py").write_text("def shout(text):\n    return text.upper()\n")
    (folder / "stages.py").write_text(stages)
    monkeypatch.syspath_prepend(str(folder.parent))


def _graph(name: str, tmp_path: Path) -> Graph:
    file = tmp_path / f"{name}.yaml"
    file.write_text((PIPELINES | OF_METHODS)[name], encoding="utf-8")
    return build_graph(resolve(str(file)))


def _compared(graph: Graph) -> tuple[str | None, list[str] | None]:
    settings = graph["compare"].settings
    assert isinstance(settings, CompareConfig)
    return settings.baseline, settings.candidates


def test_the_page_has_six() -> None:
    assert list(PIPELINES) == ["chain", "branches", "seeds", "rounds", "own", "side_by_side"]


@pytest.mark.usefixtures("own_package")
@pytest.mark.parametrize("name", PIPELINES)
def test_each_has_as_many_nodes_as_the_page_says(name: str, tmp_path: Path) -> None:
    before = PAGE.partition(f"<!-- {name} -->")[0]
    told = re.findall(r"(\d+) nodes", before)[-1]
    graph = _graph(name, tmp_path)
    assert len(graph) == int(told)
    assert len(make_plan(resolve(str(tmp_path / f"{name}.yaml")), select(graph), Home.open(tmp_path / "home"), Code())) == int(
        told
    )


@pytest.mark.parametrize("name", OF_METHODS)
def test_the_pipelines_of_methods_and_rewards_can_be_planned(name: str, tmp_path: Path) -> None:
    graph = _graph(name, tmp_path)
    assert {node.entry for node in graph.values()} >= set(yaml.safe_load(OF_METHODS[name])["pipeline"])


def test_a_chain_starts_each_from_the_one_before(tmp_path: Path) -> None:
    graph = _graph("chain", tmp_path)
    assert [graph[name].inputs["model"] for name in ("preference", "online")] == ["convert_sft", "convert_preference"]


def test_branches_have_a_reward_model_each(tmp_path: Path) -> None:
    graph = _graph("branches", tmp_path)
    assert [graph[name].inputs["reward_model"] for name in ("ppo", "grpo")] == ["convert_reward_model", "convert_large"]
    assert _compared(graph) == ("sft", ["ppo", "grpo"])


def test_a_sweep_over_seeds_goes_on_below(tmp_path: Path) -> None:
    graph = _graph("seeds", tmp_path)
    names = [f"preference@sft.seed={seed}" for seed in (1, 2, 3)]
    assert [graph[name].seed for name in names] == [1, 2, 3]
    assert _compared(graph) == ("base", ["preference"]), "seeds are one model to the comparison"


def test_rounds_compare_the_first_with_the_last(tmp_path: Path) -> None:
    graph = _graph("rounds", tmp_path)
    assert _compared(graph) == ("sft", ["preference@round=1", "preference@round=3"])
    assert "evaluate_preference@round=2" not in graph


@pytest.mark.usefixtures("own_package")
def test_a_stage_of_ones_own_stands_beside_the_others(tmp_path: Path) -> None:
    assert dict(_graph("own", tmp_path)["count"].inputs) == {"data": "data"}
