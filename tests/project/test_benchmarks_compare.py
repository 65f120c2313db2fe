"""The comparisons with the peer: same rows in the same order, turns in turn, ratios with intervals, void where losses differ."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import write_performance
from compare.cases import CASES, FULL, QUICK
from compare.duel import Arm, Running, Taken, schedule
from compare.growth import exponent
from compare.turns import Turns
from compare.verdict import OverheadLimit, Target, judged, limited, ratio
from compare.workload import RowMaker, Work

from flows.graph.build import build_graph
from flows.settings.presets import resolve
from rlhf_core.batching.templates import Renderer
from rlhf_core.methods.online import ONLINE
from rlhf_core.methods.preference import PREFERENCE
from rlhf_core.models.load import load_tokenizer
from rlhf_core.recipes.cursor import plan_cursor
from rlhf_core.recipes.examples import conversation, read_examples
from rlhf_core.settings.supervised import SftConfig
from rlhf_core.settings.training import MethodConfig

ROOT = Path(__file__).resolve().parent.parent.parent
SEED = 7


def finished(tmp: Path, name: str, cpu_s: list[float], losses: list[float]) -> Running:
    """An arm whose steps are known."""
    steps: list[Any] = [Taken(i + 2, c, 2 * c, 1000.0 * c, loss) for i, (c, loss) in enumerate(zip(cpu_s, losses, strict=True))]
    process: Any = None
    return Running(Arm(name, "ours", "sft", {}), Turns(tmp, 1), process, {"step": 1, "loss": 5.0}, 100.0, 9.0, steps)


def test_our_recipes_meet_the_rows_in_the_peers_order(tmp_path: Path) -> None:
    maker, work = RowMaker(QUICK.shape), Work(tmp_path)
    work.write("sft", QUICK.shape, [[maker.sft(3 + s + i) for i in range(4)] for s in range(3)], SEED)
    renderer = Renderer(load_tokenizer(work.model))
    examples = read_examples(work.data, "sft", "train", lambda row: conversation(renderer, row))[0]
    cursor = plan_cursor(SftConfig(batch_size=4), examples, SEED)
    for step, rows in enumerate(work.steps()):
        ours = [examples[i].rows[0] for i in cursor.batch(step)]
        assert [row.ids for row in ours] == [row["input_ids"] for row in rows]
        assert [[i if t else -100 for i, t in zip(row.ids, row.is_target, strict=True)] for row in ours] == [
            row["labels"] for row in rows
        ]
        assert [len(row) for row in ours] == [3 + step + i + 4 for i in range(4)]


def test_arms_take_turns_forwards_then_backwards(tmp_path: Path) -> None:
    arms = [finished(tmp_path, name, [], []) for name in "AB"]
    assert [(step, run.arm.name) for step, run in schedule(arms, 5)] == [
        (2, "A"), (2, "B"), (3, "B"), (3, "A"), (4, "A"), (4, "B"), (5, "B"), (5, "A")
    ]  # fmt: skip


def test_ratios_are_medians_over_steps_inside_their_interval() -> None:
    found = ratio([2.0, 4.0, 6.0, 9.0, 100.0], [1.0, 2.0, 2.0, 3.0, 1.0])
    assert found["median"] == 3.0
    assert 2.0 <= found["low"] <= 3.0 <= found["high"] <= 100.0
    assert ratio([3.0] * 5, [2.0] * 5) == {"median": 1.5, "low": 1.5, "high": 1.5, "n": 5}


@pytest.mark.parametrize(
    ("difference", "bound", "verdict"), [(0.0, 1.9, "reached"), (0.0, 2.1, "missed"), (2e-4, 1.9, "void"), (9e-5, None, "shown")]
)
def test_a_comparison_whose_losses_differ_is_void(tmp_path: Path, difference: float, bound: float | None, verdict: str) -> None:
    ours = finished(tmp_path, "ours", [1.0, 2.0], [4.0, 3.0])
    slow = finished(tmp_path, "slow", [9.0, 9.0], [9.0, 9.0])
    theirs = finished(tmp_path, "theirs", [2.0, 4.0], [4.0, 3.0 + difference])
    runs = {run.arm.name: run for run in (ours, slow, theirs)}
    result = judged(Target("C1", "speed", "ours", ("slow", "theirs"), bound), runs, own_mib=0.0)
    assert (result["against"], result["ratio"]["median"], result["verdict"]) == ("theirs", 2.0, verdict)


@pytest.mark.parametrize(("gap", "verdict"), [(1e-5, "reached"), (2e-4, "void")])
def test_arms_that_sample_are_void_where_their_logprobs_differ(tmp_path: Path, gap: float, verdict: str) -> None:
    ours, theirs = finished(tmp_path, "ours", [1.0], [0.1]), finished(tmp_path, "theirs", [2.0], [0.7])
    target = Target("C4", "speed", "ours", ("theirs",), 1.5)
    assert judged(target, {"ours": ours, "theirs": theirs}, 0.0, {"theirs": gap})["verdict"] == verdict


def test_memory_is_what_libraries_and_model_do_not_explain(tmp_path: Path) -> None:
    runs = {name: finished(tmp_path, name, [size], [1.0]) for name, size in (("ours", 1.0), ("theirs", 2.0))}
    result = judged(Target("C2", "memory", "ours", ("theirs",), 2.0, "over_own_mib"), runs, own_mib=300.0)
    assert result["ratio"]["median"] == pytest.approx((2000 - 400) / (1000 - 400))


def test_overhead_is_the_share_of_neither_generation_nor_gradient(tmp_path: Path) -> None:
    run = finished(tmp_path, "online", [5.0], [1.0])
    run.taken = [replace(run.taken[0], metrics={"seconds/generate": 6.0, "policy/seconds": 3.0})]
    limit = limited(OverheadLimit("C5", "overhead", "online", 0.1), {"online": run})
    assert limit["value"] == pytest.approx(0.1)
    assert limited(OverheadLimit("C5", "overhead", "online", 0.09), {"online": run})["verdict"] == "missed"


def test_exponent_is_the_slope_of_the_logarithms() -> None:
    assert exponent([{"x": x, "y": 3 * x**1.5} for x in (1.0, 2.0, 8.0)], "y") == pytest.approx(1.5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_targets_name_arms_of_their_case(case: Any) -> None:
    for part in case.parts(FULL):
        names = {arm.name for arm in part.arms}
        assert len(names) == len(part.arms)
        assert {name for target in part.targets for name in (target.ours, *target.theirs)} <= names
        assert len(part.steps) >= 6, "five repeats after the step that is dropped"


@pytest.mark.slow
def test_our_arm_runs_alone_and_the_page_shows_it(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--quick", "sft_speed", "--results", str(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=180)
    result = json.loads((tmp_path / "sft_speed.json").read_text())
    [arm] = result["parts"][0]["arms"]
    assert arm["units_per_cpu_s"] > 0 and arm["peak_mib"] > 100
    page = "\n\n".join(write_performance.page({"sft_speed": result}, tmp_path / "images"))
    assert f"{arm['units_per_cpu_s']:.4g}" in page
    assert (tmp_path / "images" / "sft_speed-0.svg").stat().st_size > 1000


def test_the_table_of_methods_has_every_method() -> None:
    preset = ROOT / "benchmarks" / "methods.yaml"
    settings = [node.settings for node in build_graph(resolve(str(preset))).values()]
    assert {each.method for each in settings if isinstance(each, MethodConfig)} == {*PREFERENCE, *ONLINE}
