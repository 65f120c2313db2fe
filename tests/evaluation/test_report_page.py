"""The report: every section, nothing from outside, no text of a model becomes markup, whatever is missing is left out."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import html
from made_up_run import made_up_report, write_evaluations, write_events

from data_processing.errors import ConfigError
from evaluation.comparison_artifact import write_comparison
from evaluation.config import CompareConfig
from evaluation.report import run as report_run
from evaluation.report.data import Curve, ReportData, assemble
from evaluation.report.page import render_report
from evaluation.report.run import build_report
from rlhf_core.events import EventLog
from tasks.runtime.contract.context import ArtifactRef
from tasks.runtime.store.records import NodeRecord

SECTIONS = [
    "verdict",
    "primary",
    "metrics",
    "training",
    "rewards",
    "pipeline",
    "data",
    "samples",
    "conversations",
    "segments",
    "credit",
    "curves",
    "timings",
    "lineage",
    "config",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    return made_up_report(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(data: ReportData) -> Any:
    return html.document_fromstring(render_report(data))


def text_of(element: Any) -> str:
    return " ".join(" ".join(element.itertext()).split())


def test_every_section_is_there_and_reached_from_the_navigation(page: Any) -> None:
    assert [section.get("id") for section in page.iter("section")] == SECTIONS
    assert [link.get("href") for link in page.iter("a")] == [f"#{name}" for name in SECTIONS]


def test_conversations_show_what_was_learnt_and_what_a_turn_earned(data: ReportData) -> None:
    page = html.document_fromstring(render_report(data))
    first, second = page.xpath("//section[@id='conversations']//article")
    told = [(turn[0].text_content().split(), turn[1].text_content().strip()) for turn in first.xpath(".//div[@class='turn']")]
    assert [role for role, _ in told] == [["user"], ["assistant", "learnt", "-0.1"], ["user"], ["assistant", "learnt", "1"]]
    assert told[2][1] == "17 * 23 = 391" and "the environment ended it" in first.text_content()
    assert "learnt" not in second.text_content(), "what failed teaches nothing"
    assert "no such tool" in second.text_content() and "<script>" in second.text_content()


def test_segments_are_drawn_where_they_stand_with_their_fit(data: ReportData, page: Any) -> None:
    [section] = page.xpath("//section[@id='segments']")
    assert "threshold 1.5 nats, 120 segments; fit of mean: R² 0.93, std: R² -0.02" in text_of(section)
    titles = [text_of(title) for title in section.xpath(".//*[local-name()='g']/*[local-name()='title']")]
    assert titles[:2] == ["-0.6 at 0.25", "-0.3 at 0.333"] and len(titles) == 6
    fit = section.xpath(".//*[local-name()='line'][@class='zero']")
    assert len(fit) == 3 * 48, "mean, and a deviation below and above"


def test_credit_is_told_in_numbers_and_shades(data: ReportData) -> None:
    page = html.document_fromstring(render_report(data))
    [shown] = page.xpath("//section[@id='credit']//article")
    units = shown.xpath(".//mark")
    assert [unit.text_content() for unit in units] == ["A. Is it a lamp?+0.50", "B. <b>Approve</b>.-0.25", "C. Stop.-4.0e-04"]
    assert [(unit.get("class"), unit.get("style")) for unit in units] == [
        ("unit good", "--share: 100%"),
        ("unit bad", "--share: 50%"),
        ("unit bad", "--share: 0%"),
    ]
    assert "outcome 0.75" in shown.text_content() and "Rule 1" in shown.text_content()


def test_nothing_is_fetched_and_nothing_runs(data: ReportData) -> None:
    elsewhere = {"Prefect": "http://127.0.0.1:4200/runs/flow-run/1?a=1&b=2", "MLflow": "https://tracker/'\"><img src=x>/#/runs/2"}
    text = render_report(dataclasses.replace(data, pages=elsewhere))
    page = html.document_fromstring(text)
    assert not re.search(r"(?i)url\(|@import|<script|<link|<img|<iframe|<object|<embed|\son\w+=", text)
    assert not page.xpath("//*[@src or @srcset or @data or @action or @background or @*[name() = 'xlink:href']]")
    outside = page.xpath("//*[@href][not(starts-with(@href, '#'))]")
    assert [(link.tag, link.text, link.get("href")) for link in outside] == [("a", *where) for where in elsewhere.items()]
    policy = page.xpath("//meta[@http-equiv='Content-Security-Policy']/@content")[0]
    assert policy.startswith("default-src 'none'")


def test_pages_elsewhere_are_named_only_where_a_browser_can_go(data: ReportData) -> None:
    text = render_report(
        dataclasses.replace(data, pages={"Prefect": "javascript:alert(1)", "MLflow": "sqlite:////home/mlflow.db"})
    )
    assert not html.document_fromstring(text).xpath("//a[not(starts-with(@href, '#'))]")


def test_it_follows_the_reader_into_the_dark_onto_phones_and_onto_paper(page: Any) -> None:
    style = page.xpath("//style")[0].text
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style
    assert "max-width: 640px" in style
    assert page.xpath("//meta[@name='viewport']/@content") == ["width=device-width, initial-scale=1"]


def test_on_a_phone_every_cell_of_a_wide_table_stands_under_its_title_with_the_name_of_its_column(page: Any) -> None:
    wide = page.xpath("//table[@class='folds']")
    assert len(wide) == 5, "by source, all metrics, how models of either kind were trained, and rewards"
    for table in wide:
        columns = [text_of(th) for th in table.xpath("thead/tr/th")]
        for row in table.xpath("tbody/tr[td]"):
            assert [cell.get("data-column") for cell in row.findall("td")] == [None, *columns[1:]]
    narrow = page.xpath("//style")[0].text.partition("max-width: 640px")[2]
    assert "attr(data-column)" in narrow and ".folds thead { display: none; }" in narrow


def test_the_verdict_names_challenger_and_reason(data: ReportData, page: Any) -> None:
    verdict = text_of(page.get_element_by_id("verdict"))
    assert verdict == f"Challenger: {data.verdict['challenger']} {data.verdict['reason']}"


def test_the_table_shows_mean_interval_and_paired_difference_of_every_model(data: ReportData, page: Any) -> None:
    row = next(r for r in page.get_element_by_id("metrics").iter("tr") if "primary" in (r.get("class") or ""))
    numbers = data.verdict["models"]["online"]["sampled"]["procedures.score"]
    gain = data.verdict["paired"]["online"]["sampled"]["procedures.score"]
    cell = text_of(row.findall("td")[4])
    assert cell.startswith(f"{numbers['mean']:.2f} {numbers['low']:.2f} – {numbers['high']:.2f}")
    assert cell.endswith(f"Δ {gain['mean']:+.2f}".replace("-", "−"))
    header = [text_of(th) for th in page.get_element_by_id("metrics").find(".//thead").iter("th")]
    assert header == ["Metric", "base", "sft", "preference", "online"]


def test_the_forest_plot_has_a_mark_for_every_model_and_every_difference(page: Any) -> None:
    plots = page.get_element_by_id("primary").xpath(".//svg")
    assert [len(plot.xpath(".//circle")) for plot in plots] == [4, 3]
    places = [float(c.get("cx").rstrip("%")) for c in plots[0].xpath(".//circle")]
    assert all(0 <= place <= 100 for place in places)
    assert places[0] < places[1] < places[3]


def test_it_says_how_many_prompts_of_which_source_were_measured(data: ReportData, page: Any) -> None:
    primary = page.get_element_by_id("primary")
    assert "64 of 192 test prompts; 1 too long for the model" in text_of(primary.xpath("p[@class='lead']")[0])
    rows = [text_of(row) for row in primary.xpath(".//table")[1].xpath(".//tbody/tr")]
    assert [row.split(" 0.")[0] for row in rows] == ["procedures 42 of 128", "my-prompts 22 of 64"]
    own = data.sources["my-prompts"]["online"]
    assert own["n"] == 22
    assert rows[1].endswith(f"{own['mean']:.2f} {own['low']:.2f} – {own['high']:.2f}")


def test_it_says_how_sure_each_difference_is_and_what_could_have_been_found(data: ReportData, page: Any) -> None:
    table = page.get_element_by_id("primary").xpath(".//table")[0]
    test = data.verdict["tests"]["preference"]
    cells = [text_of(cell) for cell in table.xpath(".//tbody/tr")[1].iter("td")]
    assert cells == [f"preference {test['judgement']}", f"{test['corrected_p']:.2g}", f"{test['detectable']:.2f}"]
    assert "Holm's correction over the candidates" in text_of(page.get_element_by_id("primary"))


def test_too_few_prompts_are_no_verdict_and_colour_nothing(tmp_path: Path) -> None:
    (tmp_path / "compare").mkdir()
    write_comparison(
        write_evaluations(tmp_path, 5),
        CompareConfig(baseline="sft", candidates=["preference", "online"]),
        tmp_path / "compare",
        0,
        EventLog(tmp_path / "e.jsonl"),
    )
    page = html.document_fromstring(render_report(assemble(tmp_path / "compare", {}, "", (), ())))
    assert text_of(page.get_element_by_id("verdict")).startswith("No verdict Too few prompts: 5 of 20 needed")
    assert "too few prompts: 5 of 20 needed" in text_of(page.get_element_by_id("primary"))
    assert not page.xpath("//*[contains(@class, 'delta good') or contains(@class, 'delta bad')]")


def test_samples_show_prompt_answers_scores_and_faults_side_by_side(data: ReportData, page: Any) -> None:
    samples = page.get_element_by_id("samples").xpath(".//article")
    assert len(samples) == 6
    assert [text_of(b) for b in samples[0].iter("b")] == ["base", "sft", "preference", "online"]
    assert samples[0].xpath(".//pre")[0].text.startswith("\nWrite the review procedure for a") or "Write the review" in text_of(
        samples[0]
    )
    assert "line 1 is not a step" in text_of(samples[0])
    assert "Check the <label>." in text_of(samples[0])


def test_curves_are_drawn_for_each_training_stage_most_telling_first(page: Any) -> None:
    stages = page.get_element_by_id("curves").xpath(".//div[@class='stage']")
    assert [text_of(stage.find("h3")) for stage in stages] == ["sft", "reward model", "preference", "online"]
    assert text_of(stages[0].xpath(".//figcaption/span")[0]) == "loss"
    assert len(stages[3].xpath(".//details//figure")) == len(stages[3].xpath(".//figure")) - 8
    assert "2 pairs were longer" in text_of(stages[2])


def test_lineage_timings_and_configuration_are_shown(page: Any) -> None:
    assert text_of(page.get_element_by_id("lineage").xpath(".//tbody/tr")[2]).startswith("sft checkpoint")
    timings = text_of(page.get_element_by_id("timings"))
    assert "2 of 9 stages came from the store" in timings
    assert "5 min 12 s" in timings
    assert "kl_coef: 0.02" in text_of(page.get_element_by_id("config"))


def test_what_is_missing_is_left_out(data: ReportData) -> None:
    bare = dataclasses.replace(
        data,
        curves={},
        samples=[],
        timings=(),
        lineage=(),
        config_yaml="",
        data={},
        rewards={},
        conversations={},
        credit={},
        segments={},
    )
    page = html.document_fromstring(render_report(bare))
    assert [section.get("id") for section in page.iter("section")] == SECTIONS[:3]


@settings(max_examples=40, deadline=None)
@given(st.one_of(st.text(), st.text(alphabet="<>&\"'/=scriptimgonerror \n\x00")))
def test_no_text_of_a_model_or_a_prompt_becomes_an_element(text: str) -> None:
    answer = {"model": text, "text": text, "finish_reason": "stop", "tokens": 3, "score": 0.5, "scores": {}, "faults": [text]}
    sample = {"prompt": [{"role": text, "content": text}], "answers": [answer]}
    plain = {**answer, "model": "m", "text": "t", "faults": ["f"]}
    safe = {"prompt": [{"role": "user", "content": "c"}], "answers": [plain]}
    hostile_page, safe_page = (_elements(small_report(s, t)) for s, t in ((sample, text), (safe, "title")))
    assert hostile_page == safe_page


def small_report(sample: dict[str, Any], text: str) -> ReportData:
    numbers = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    table = {"sampled": {"m": numbers}}
    verdict = {
        "models": {"sft": table, "online": table},
        "paired": {"online": table},
        "judgements": {"online": "better"},
        "challenger": "online",
        "reason": text,
        "primary_metric": "m",
        "decoding": "sampled",
        "baseline": "sft",
    }
    from evaluation.scores import Measure

    curves = {text or "stage": [Curve(text or "metric", [1, 2], [0.0, 1.0])]}
    return ReportData(text, verdict, {"m": Measure("m", text)}, [sample], 0.95, curves, {}, text or "x")


def _elements(data: ReportData) -> list[str]:
    """Names and attribute names of all elements, in order."""
    page = html.document_fromstring(render_report(data))
    return [f"{e.tag} {sorted(e.attrib)}" for e in page.iter() if isinstance(e.tag, str)]


def test_curves_survive_resumes_broken_lines_and_numbers_that_are_none(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "sft" / "events.jsonl")
    for step, value in ((1, 3.0), (2, 2.5), (2, 2.0), (3, float("nan")), (4, 1.0)):
        log.metrics(step, {"loss": value, "once": 1.0} if step == 1 else {"loss": value})
    with log.path.open("a") as stream:
        stream.write('{"type": "metrics", "step": 5, "val')
    comparison = tmp_path / "compare"
    comparison.mkdir()
    write_comparison(
        write_evaluations(tmp_path, 5),
        CompareConfig(baseline="sft", candidates=["preference", "online"]),
        comparison,
        0,
        EventLog(tmp_path / "e.jsonl"),
    )
    data = assemble(comparison, {"sft": log.path, "gone": tmp_path / "gone.jsonl"}, "", (), ())
    [curve] = data.curves["sft"]
    assert (curve.metric, list(curve.steps), list(curve.values), curve.dropped) == ("loss", [1, 2, 4], [3.0, 2.0, 1.0], 1)
    assert list(data.curves) == ["sft"]


def test_long_curves_are_averaged_not_cut(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    lines = [json.dumps({"type": "metrics", "step": i, "values": {"loss": i}}) for i in range(5000)]
    log.path.write_text("\n".join(lines))
    comparison = tmp_path / "compare"
    comparison.mkdir()
    write_comparison(
        write_evaluations(tmp_path, 5),
        CompareConfig(baseline="sft", candidates=["preference", "online"]),
        comparison,
        0,
        EventLog(tmp_path / "e.jsonl"),
    )
    [curve] = assemble(comparison, {"sft": log.path}, "", (), ()).curves["sft"]
    assert len(curve.values) <= 300
    assert curve.values[0] < 20
    assert curve.values[-1] > 4980


def test_the_report_of_a_run_is_built_from_its_folder(tmp_path: Path) -> None:
    events = write_events(tmp_path)
    (tmp_path / "compare").mkdir()
    write_comparison(
        write_evaluations(tmp_path),
        CompareConfig(baseline="sft", candidates=["preference", "online"]),
        tmp_path / "compare",
        0,
        EventLog(tmp_path / "e.jsonl"),
    )
    run = tmp_path / "runs" / "align-1"
    _record(run, "sft", "checkpoint", events["sft"].parent, inputs={}, seconds=12.0)
    made_from = {"base": "key of sft"}
    _record(run, "compare", "comparison", tmp_path / "compare", inputs=made_from, seconds=1.0, adopted=["code.a", "code.b"])
    (run / "config.yaml").write_text("run:\n  seed: 17\n")
    page = html.parse(build_report(run)).getroot()
    assert text_of(page.xpath("//h1")[0]) == "align-1"
    assert [text_of(row) for row in page.get_element_by_id("lineage").xpath(".//tbody/tr")] == [
        "sft checkpoint sft-key of earlier/sft –",
        "compare comparison compare-key of earlier/compare adopted over changes of code.a, code.b sft",
    ]
    assert "seed: 17" in text_of(page.get_element_by_id("config"))
    assert page.get_element_by_id("curves") is not None


def test_a_run_that_compared_nothing_has_no_report(tmp_path: Path) -> None:
    _record(tmp_path / "align-2", "sft", "checkpoint", tmp_path, inputs={}, seconds=1.0)
    with pytest.raises(ConfigError, match=r"run 'align-2' has no report.*\['sft'\]"):
        build_report(tmp_path / "align-2")


def test_the_report_needs_no_torch() -> None:
    code = "import sys, evaluation.report.run, evaluation.comparison_artifact; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]"


def _record(run: Path, node: str, kind: str, folder: Path, *, inputs: dict[str, str], seconds: float, **more: Any) -> None:
    key = f"key of {node}"
    ref = ArtifactRef(kind=kind, key=key, uri=folder.as_uri(), sha256="0" * 64, producer=f"earlier/{node}")
    told = {"description": {"inputs": inputs}, "ref": ref, "cached": False, "seconds": seconds, "attempt": 1, **more}
    record = NodeRecord(node=node, stage=node, key=key, **told)
    path = run / "nodes" / f"{node}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(record.model_dump_json())


def test_each_node_of_a_long_chain_stands_behind_what_it_was_made_from() -> None:
    keys = [f"{number:04}" for number in range(500)]
    records = [
        {"key": key, "node": key, "description": CountedReads({"inputs": {"model": before}})} for before, key in pairwise(keys)
    ]
    assert [record["key"] for record in report_run._in_order(records[::-1])] == keys[1:]
    assert CountedReads.reads <= 5 * len(records)


class CountedReads(dict[str, Any]):
    """Descriptions of nodes that count how often one of them is looked at."""

    reads = 0

    def get(self, key: str, default: Any = None) -> Any:
        CountedReads.reads += 1
        return super().get(key, default)


def test_many_models_are_rows_of_the_tables_and_their_answers_are_folded(tmp_path: Path) -> None:
    names = [f"ppo@kl_coef={i}" for i in range(20)]
    folders = write_evaluations(tmp_path)
    inputs = {"base": folders["base"], "sft": folders["sft"], **dict.fromkeys(names, folders["online"])}
    config = CompareConfig(baseline="sft", candidates=names)
    (tmp_path / "compare").mkdir()
    write_comparison(inputs, config, tmp_path / "compare", 0, EventLog(tmp_path / "e.jsonl"))
    page = html.parse(tmp_path / "compare" / "report.html").getroot()
    table = next(page.get_element_by_id("metrics").iter("table"))
    assert [row[0].text_content() for row in table.find("tbody")] == ["base", "sft", *names]
    [sample, *_] = page.get_element_by_id("samples").iter("article")
    assert len(sample.xpath("./div[@class='answers']/div")) == 6
    assert len(sample.xpath("./details//div[@class='answer']")) == 16
    colours = [span.get("style") for span in table.iter("span") if span.get("class") == "dotted"]
    assert len(set(colours)) == 12
