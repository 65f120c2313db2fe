"""The settings for GPUs of docs/cluster.md reserve what the page says, on machines as small as it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flows.graph.build import build_graph
from flows.graph.plan import make_plan
from flows.graph.selection import select
from flows.running.check_stages import check_room
from flows.settings.layers import as_overrides
from flows.settings.presets import read_values, resolve
from rlhf_core.cluster.capacity import Capacity, NodeKind
from tasks.runtime.contract.home import Home
from tasks.runtime.keys.closure import Code

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
RECIPES = {int(gpus): text for gpus, text in re.findall(r"<!-- (\d+) GPU -->\n```yaml\n(.*?)```", PAGE, flags=re.DOTALL)}
TRAINING = ("sft", "reward_model", "preference", "online")


@pytest.mark.parametrize("gpus", [1, 8])
def test_a_recipe_fits_on_as_many_gpus_as_it_is_for_and_uses_them(gpus: int, tmp_path: Path) -> None:
    file = tmp_path / "gpu.yaml"
    file.write_text(RECIPES[gpus])
    config = resolve("quickstart", overrides=as_overrides(read_values(file)))
    plan = make_plan(config, select(build_graph(config)), Home.open(tmp_path / "home"), Code())
    check_room(plan, Capacity((NodeKind({"CPU": 2.0 * gpus, "GPU": float(gpus)}),)))
    assert [p.resources.gpus for p in plan.values() if p.node.stage in TRAINING] == [gpus] * 4
    assert {p.resources.gpus for p in plan.values() if p.node.stage == "evaluate"} == {1.0}
