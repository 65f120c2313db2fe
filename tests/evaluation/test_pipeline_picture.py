"""The picture of a pipeline: a box an entry, to the right of all that it is made from."""

from __future__ import annotations

from typing import Any

from lxml import html

from evaluation.report.data import LineageEntry, ReportData, Timing
from evaluation.report.graph import boxes, columns, graph_chart

VERDICT: dict[str, Any] = {"models": {"base": {}, "sft": {}, "ppo@seed=1": {}}}
NODES = {
    "base": [],
    "data": [],
    "sft": ["base", "data"],
    "convert_sft": ["sft", "base"],
    "rm": ["convert_sft", "data"],
    "convert_rm": ["rm", "convert_sft"],
    "ppo@seed=1": ["convert_sft", "data", "convert_rm"],
    "convert_ppo@seed=1": ["ppo@seed=1", "convert_sft"],
    "evaluate_sft": ["convert_sft", "data", "base", "convert_rm"],
    "compare": ["evaluate_sft"],
}


def _data() -> ReportData:
    kinds = {"compare": "comparison"}
    lineage = [LineageEntry(node, kinds.get(node, "model"), "0" * 12, "run/node", inputs) for node, inputs in NODES.items()]
    timings = [Timing(node, 2.0, cached=node in ("base", "data")) for node in NODES]
    return ReportData("run", VERDICT, {}, [], 0.95, lineage=lineage, timings=timings)


def test_conversions_and_evaluations_are_part_of_what_they_follow() -> None:
    found = {box.name: box for box in boxes(_data())}
    assert list(found) == ["base", "data", "sft", "rm", "ppo@seed=1"]
    assert (found["sft"].seconds, found["sft"].cached, found["base"].cached) == (6.0, False, True)
    assert found["ppo@seed=1"].made_from == {"sft", "rm", "data"}


def test_every_box_stands_to_the_right_of_what_it_is_made_from() -> None:
    place = {box.name: x for x, column in enumerate(columns(boxes(_data()))) for box in column}
    assert place == {"base": 0, "data": 0, "sft": 1, "rm": 2, "ppo@seed=1": 3}


def test_the_picture_has_a_box_an_entry_with_its_time_and_the_colour_of_its_model() -> None:
    picture = html.fromstring(str(graph_chart(_data())))
    told = [group.findtext("title") for group in picture.iter("g")]
    assert "sft: 6 s, made from base, data" in told
    assert "base: cached" in told
    colours = {(group.findtext("title") or "").partition(":")[0]: group.get("style") for group in picture.iter("g")}
    assert colours["sft"] != colours["base"] != colours["ppo@seed=1"]


def test_without_lineage_there_is_no_picture() -> None:
    assert graph_chart(ReportData("run", VERDICT, {}, [], 0.95)) is None
