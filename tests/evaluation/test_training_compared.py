"""Training runs side by side: what is made of their curves, seeds folded, and which models nothing beats at their KL."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from lxml import html

from evaluation.report.charts import Point
from evaluation.report.data import Curve, ReportData
from evaluation.report.training import _dominates, _numbers, training_section
from tests.evaluation.made_up_run import made_up_report


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    return made_up_report(tmp_path_factory.mktemp("run"))


def curve(metric: str, *values: float) -> Curve:
    return Curve(metric, list(range(1, len(values) + 1)), values)


def test_a_run_is_summed_up_by_its_first_and_last_quarter(data: ReportData) -> None:
    rewards = (0.0, 0.0, 0.5, 0.9, 0.9, 1.0, 1.0, 1.0)
    curves = [
        curve("reward/mean", *rewards),
        curve("seconds/round", 9, 2, 3),
        curve("memory_mib/policy", 10, 30),
        curve("memory_mib/reward", 5, 4),
    ]
    found = _numbers(dataclasses.replace(data, curves={"online": curves}), "online")
    assert (found["Reward at first"], found["Reward at last"]) == (0.0, 1.0)
    assert found["Rounds to 90% of the gain"] == 4
    assert found["Change a round (sd)"] == pytest.approx(0.199, abs=1e-3)
    assert found["Seconds a step"] == 3
    assert found["Peak memory (MiB)"] == 35, "of all roles together"
    assert "Margin" not in found


def test_models_that_log_the_same_share_a_table(data: ReportData) -> None:
    page = html.fromstring(training_section(data))
    told = {row[0].text_content(): [cell.text_content() for cell in row[1:]] for row in page.xpath(".//tbody/tr")}
    assert list(told) == ["preference", "online"], "of SFT there is nothing to compare"
    titles = [[cell.text_content() for cell in head][1:] for head in page.xpath(".//thead/tr")]
    preference, online = (dict(zip(head, told[name], strict=True)) for head, name in zip(titles, told, strict=True))
    assert online["Mismatch KL (nats a token, largest)"] == "2.0e-04"
    assert "Reward at last" not in preference and "Margin" not in online, "no column that a model has nothing for"
    assert float(preference["Accuracy"]) > 0.8
    assert online["Peak memory (MiB)"] == "1,530"


def test_seeds_are_one_row_with_an_interval(data: ReportData) -> None:
    members = ["online@seed=1", "online@seed=2"]
    curves = {member: [curve("reward/mean", 0.0, reward)] for member, reward in zip(members, (1.0, 3.0), strict=True)}
    verdict = {**data.verdict, "seeds": {"online": {"members": members}}}
    page = html.fromstring(training_section(dataclasses.replace(data, verdict=verdict, curves={**data.curves, **curves})))
    [cell] = page.xpath(".//tbody/tr[last()]/td[@data-column='Reward at last']")
    assert cell.text_content().startswith("2")
    assert "–" in cell.xpath("./span[@class='range']")[0].text_content()


def test_the_picture_names_what_nothing_beats(data: ReportData) -> None:
    page = html.fromstring(training_section(data))
    assert [text.text_content() for text in page.xpath(".//svg//g/text")] == ["base", "sft", "preference", "online"]
    assert page.xpath(".//p[@class='note']")[0].text_content().startswith("Not beaten at their KL or less: base")
    near, far = Point("near", 1.0, 0.5, ""), Point("far", 2.0, 0.5, "")
    assert not _dominates(near, far, "higher"), "as good is not better"
    assert _dominates(Point("", 1.0, 0.6, ""), far, "higher")
    assert _dominates(Point("", 1.0, 0.4, ""), far, "lower")
    assert not _dominates(Point("", 3.0, 0.9, ""), far, "higher"), "it went further"


def test_one_trained_model_is_not_compared(data: ReportData) -> None:
    assert not training_section(dataclasses.replace(data, curves={"online": data.curves["online"]}))


def test_the_page_shows_it(data: ReportData, tmp_path: Path) -> None:
    from evaluation.report.page import write_report

    write_report(data, tmp_path / "report.html")
    assert "Training compared" in (tmp_path / "report.html").read_text(encoding="utf-8")
