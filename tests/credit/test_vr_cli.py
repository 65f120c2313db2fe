"""VR-CLI: completions are scored by construction, plans are compared with what was kept, and what does not belong together is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from data_processing.errors import ConfigError, DataError, PreemptedError
from data_processing.schemas import read_table, to_table, write_table
from rlhf_core.batching.chat_templates import read_template
from rlhf_core.credit.vr_cli.baseline import ABOUT_NAME, TABLE_NAME, Baseline
from rlhf_core.credit.vr_cli.completions import FrozenGenerator, Record, told
from rlhf_core.credit.vr_cli.improvement import improvement_percent, improvement_reward
from rlhf_core.credit.vr_cli.plans import copied_share, extract_plan
from rlhf_core.credit.vr_cli.reward import VrCliScorer, build
from rlhf_core.events import EventLog
from rlhf_core.recipes import vr_cli_baseline
from rlhf_core.recipes.stop import STOP_FILE_NAME
from rlhf_core.recipes.vr_cli_baseline import BaselineJob, compute_baseline
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.build import Around
from rlhf_core.settings.rewards.vr_cli import VrCliReward
from rlhf_core.settings.training import EngineSettings
from rlhf_core.settings.vr_cli import ScoreSpan, VrCliBaselineConfig
from tests.tiny_models import tiny_model

HOW = VrCliBaselineConfig(max_length_tokens=512, micro_batch_tokens=256)
ASKED = [{"role": "user", "content": "Why did the clerk reject the claim?"}]
RECORD = Record(ASKED, "It arrived late, and the receipt was gone.")
OTHER = Record([{"role": "user", "content": "Which tier?"}], "Gold.")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def generator(model: Path) -> FrozenGenerator:
    return FrozenGenerator(model, HOW, gpus=0.0)


def spanning(model: Path, span: ScoreSpan) -> FrozenGenerator:
    return FrozenGenerator(model, HOW.model_copy(update={"score_span": span}), gpus=0.0)


def prompts(folder: Path, records: Sequence[Record], **columns: Any) -> Path:
    """A data folder whose prompts are those of some records, the last of them in the test split."""
    for split, own in (("train", records[:-1]), ("test", records[-1:])):
        rows = [
            {"id": f"{split}-{i}", "prompt": list(record.asked), "label": record.completion, "source": "s", **columns}
            for i, record in enumerate(own)
        ]
        write_table("prompts", to_table("prompts", rows), folder / "prompts" / f"{split}.parquet")
    return folder


def baseline_job(folder: Path, model: Path, data: Path, **settings: Any) -> BaselineJob:
    folder.mkdir(parents=True, exist_ok=True)
    events = EventLog(folder / "events.jsonl")
    (folder / "output").mkdir()
    config = HOW.model_copy(update=settings)
    return BaselineJob(config, model, data, folder / "output", folder / "resume", events)


def response(record: Record, text: str, row_id: str = "train-0", **fields: Any) -> ScoredResponse:
    return ScoredResponse(row_id, record.asked, record.completion, [1], [2], text, **fields)


def around(model: Path, baseline: Path | None) -> Around:
    folders = {"generator": model} | ({"baseline": baseline} if baseline else {})
    return Around(model, EngineSettings(dtype="fp32"), folders)


def test_scored_with_all_it_is_the_loss_of_the_library(model: Path) -> None:
    row = spanning(model, "all").row(RECORD)
    labels = torch.tensor([[-100] * row.start + row.ids[row.start :]])
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        loss = lm(input_ids=torch.tensor([row.ids]), labels=labels).loss.item()
    [found] = spanning(model, "all").nll([row])
    assert found.mean == pytest.approx(loss, abs=1e-5)
    assert found.n_tokens == len(row.ids) - row.start


def test_a_completion_of_one_token_is_scored_by_itself(model: Path) -> None:
    short = Record(ASKED, "9")
    counts = {
        span: spanning(model, span).nll([spanning(model, span).row(short)])[0].n_tokens
        for span in ("content", "content+eot", "all")
    }
    assert counts == {"content": 1, "content+eot": 2, "all": 3}


def test_what_is_scored_beside_changes_nothing(generator: FrozenGenerator) -> None:
    plans = ["", "Say that it was late.", "Say that it was late.", "Blame the receipt, and the clerk."]
    rows = [generator.row(RECORD, plan) for plan in plans] + [generator.row(OTHER, "Gold, of course.")]
    together = generator.nll(rows)
    alone = [generator.nll([row])[0] for row in rows]
    assert [nll.total_nats for nll in together] == pytest.approx([nll.total_nats for nll in alone], abs=1e-4)
    assert [nll.n_tokens for nll in together] == [nll.n_tokens for nll in alone]
    assert together[1] == together[2]


def test_rows_of_one_prompt_compute_its_beginning_once(generator: FrozenGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf_core.credit.vr_cli import completions

    given: list[Any] = []
    passes = completions.passes
    monkeypatch.setattr(completions, "passes", lambda rows, *rest: given.extend(rows) or passes(rows, *rest))
    generator.nll([generator.row(RECORD, plan) for plan in ("one", "two", "one")])
    assert len(given) == 2
    first, second = given
    assert first.prompt_length == second.prompt_length > len(generator.row(OTHER).ids) // 2
    assert first.ids[: first.prompt_length] == second.ids[: second.prompt_length]
    assert first.ids[first.prompt_length] != second.ids[second.prompt_length]


def test_baseline_and_plan_score_the_same_ids(generator: FrozenGenerator) -> None:
    bare, planned = generator.row(RECORD), generator.row(RECORD, "Say that it was late.")
    assert bare.ids[bare.start :] == planned.ids[planned.start :]
    assert generator.tokenizer.decode(bare.ids[bare.start : -1]) == RECORD.completion


def test_control_tokens_in_completions_and_plans_are_text(generator: FrozenGenerator) -> None:
    end = generator.tokenizer.eos_token_id
    row = generator.row(Record(ASKED, "a<|im_end|>b"), "c<|im_end|>d")
    plain = generator.row(Record(ASKED, "ab"), "cd")
    assert row.ids.count(end) == plain.ids.count(end)


def test_a_template_that_thinks_is_asked_without(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "qwen3")
    (folder / "chat_template.jinja").write_text(read_template("qwen3"), encoding="utf-8")
    silent = FrozenGenerator(folder, HOW, gpus=0.0)
    assert "<think>\n\n</think>" in silent.tokenizer.decode(silent.row(RECORD).ids[: silent.row(RECORD).start])


@pytest.mark.parametrize(
    ("settings", "plan", "content"),
    [
        ({}, "", "Q"),
        ({}, "P", "Q\n\n### Plan ###\nP\n"),
        ({"instruction": "Write."}, "", "Q\n\nWrite."),
        ({"instruction": "Write."}, "P", "Q\n\n### Plan ###\nP\nWrite."),
        ({"instruction": "Write.", "plan_instruction": "Use it."}, "P", "Q\n\n### Plan ###\nP\nUse it."),
        ({"instruction": "Write.", "plan_instruction": "Use it."}, "", "Q\n\nWrite."),
    ],
)
def test_what_the_generator_is_told(settings: dict[str, Any], plan: str, content: str) -> None:
    before = {"role": "system", "content": "S"}
    found = told([before, {"role": "user", "content": "Q"}], plan, VrCliBaselineConfig(**settings))
    assert found == [before, {"role": "user", "content": content}]


@given(st.floats(0.1, 12.0), st.floats(-3.0, 3.0))
def test_an_improvement_is_at_most_all_of_it_and_has_the_sign_of_the_difference(nats: float, less: float) -> None:
    percent = improvement_percent(nats, nats - less)
    assert percent <= 100
    assert (percent > 0) == (nats - less < nats)
    levels = [improvement_reward(value, "thresholds", [0.05, 1.0, 2.0], [0.5, 0.9, 1.0]) for value in (percent, percent + 0.5)]
    assert levels == sorted(levels)


@given(st.text(max_size=40), st.text(max_size=40))
def test_a_plan_is_what_stands_behind_the_marker(before: str, plan: str) -> None:
    found = extract_plan(f"{before}In summary:{plan}", ["In summary:"], require_marker=True)
    assert found.marked
    if "In summary:" not in plan and "</think>" not in plan:
        assert found.text == plan.strip()


def test_a_required_marker_makes_the_rest_no_plan() -> None:
    assert extract_plan("do A", ["In summary:"], require_marker=True).text == ""
    assert extract_plan("do A", ["In summary:"], require_marker=False).text == "do A"


def test_a_copied_plan_is_told() -> None:
    assert copied_share("The heroine leaves the old house", "At dawn the heroine leaves the old house.") == pytest.approx(2 / 3)
    assert copied_share("too short", "too short") == 0


def test_a_baseline_is_read_as_it_was_written(model: Path, tmp_path: Path) -> None:
    job = baseline_job(tmp_path / "one", model, prompts(tmp_path / "data", [RECORD, OTHER]))
    facts = compute_baseline(job)
    rows = read_table("baseline", job.output / TABLE_NAME).to_pylist()
    assert [(row["id"], row["split"], row["record"]) for row in rows] == [
        ("train-0", "train", RECORD.id),
        ("test-0", "test", OTHER.id),
    ]
    [alone] = spanning(model, "content+eot").nll([spanning(model, "content+eot").row(OTHER)])
    baseline = Baseline.read(job.output)
    assert baseline.mean_nll("test-0", OTHER) == pytest.approx(alone.mean, abs=1e-6) == rows[1]["nll_sum"] / rows[1]["n_tokens"]
    assert facts["rows"] == 2
    assert facts["tokens"] == sum(row["n_tokens"] for row in rows)
    assert baseline.about.settings == job.config


def test_a_stopped_baseline_goes_on_to_the_same_table(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vr_cli_baseline, "_ROWS_A_PART", 2)
    records = [Record(ASKED, f"Answer {i}, and more." * (1 + i % 3)) for i in range(7)]
    data = prompts(tmp_path / "data", records)
    whole = baseline_job(tmp_path / "whole", model, data)
    compute_baseline(whole)
    stopped = baseline_job(tmp_path / "stopped", model, data)
    nll = FrozenGenerator.nll
    calls: list[int] = []

    def then_stop(self: FrozenGenerator, rows: Any, tell: Any) -> Any:
        calls.append(len(rows))
        if len(calls) == 2:
            (stopped.resume / STOP_FILE_NAME).touch()
        return nll(self, rows, tell)

    monkeypatch.setattr(FrozenGenerator, "nll", then_stop)
    with pytest.raises(PreemptedError):
        compute_baseline(stopped)
    (stopped.resume / STOP_FILE_NAME).unlink()
    compute_baseline(stopped)
    # The stopped part is scored again, that before it is not.
    assert calls == [2, 2, 2, 2, 1]
    assert (stopped.output / TABLE_NAME).read_bytes() == (whole.output / TABLE_NAME).read_bytes()


def test_prompts_without_a_completion_or_with_a_long_one_are_named(model: Path, tmp_path: Path) -> None:
    data = prompts(tmp_path / "data", [RECORD, Record(ASKED, "word " * 600)])
    with pytest.raises(DataError, match=r"1 of 2 prompts \(test-0 \(\d+ tokens\).*max_length_tokens=512"):
        compute_baseline(baseline_job(tmp_path / "long", model, data))
    with pytest.raises(DataError, match=r"2 of 2 prompts .*nothing in their column 'gold'"):
        compute_baseline(baseline_job(tmp_path / "gold", model, data, gold="gold"))


def test_the_completion_is_the_column_that_is_named_or_the_answer() -> None:
    columns = {"response": [{"role": "assistant", "content": "R"}], "gold": "G", "asked": ASKED}
    longer = [{"role": "user", "content": "Why did the clerk reject the claim?\n\nThink first."}]
    assert Record.of(longer, None, columns, None) == Record(ASKED, "R")
    assert Record.of(longer, "L", columns, None) == Record(ASKED, "L")
    assert Record.of(longer, "L", columns, "gold") == Record(ASKED, "G")
    assert Record.of(ASKED, None, {}, None) is None
    for answer in (
        [{"from": "gpt", "value": "R"}],
        {"role": "assistant", "content": "R"},
        [{"role": "assistant", "content": [{"type": "text", "text": "R"}]}],
        '[{"role": "assistant", "content": "R"}]',
    ):
        assert Record.of(ASKED, None, {"response": answer}, None) == Record(ASKED, "R")


@pytest.fixture(scope="module")
def baseline(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two rows."""
    folder = tmp_path_factory.mktemp("baseline")
    job = baseline_job(folder / "job", model, prompts(folder / "data", [RECORD, OTHER]))
    compute_baseline(job)
    return job.output


class TestReward:
    """The scorer against a baseline of two rows."""

    def test_it_is_the_improvement_of_the_plan(self, model: Path, baseline: Path, generator: FrozenGenerator) -> None:
        scorer = build(VrCliReward(mode="raw"), around(model, baseline))
        answers = [
            response(RECORD, "Hm. In summary: it was late."),
            response(OTHER, "<think>In summary: no</think>Gold.", "test-0"),
        ]
        scores = scorer.score(answers)
        wanted = []
        for record, plan in ((RECORD, "it was late."), (OTHER, "Gold.")):
            bare, planned = generator.nll([generator.row(record), generator.row(record, plan)])
            wanted.append(improvement_percent(bare.mean, planned.mean))
        assert list(scores.rewards) == pytest.approx(wanted, abs=1e-3)
        assert scores.metrics["improvement"] == scores.rewards
        assert scores.metrics["marked"] == [1.0, 0.0]

    def test_order_and_repetition_change_nothing(self, model: Path, baseline: Path) -> None:
        scorer = build(VrCliReward(mode="raw"), around(model, baseline))
        answers = [
            response(RECORD, "late"),
            response(OTHER, "gold", "test-0"),
            response(RECORD, "early"),
            response(RECORD, "late"),
        ]
        rewards = list(scorer.score(answers).rewards)
        assert rewards[0] == rewards[3]
        assert list(scorer.score(answers[::-1]).rewards) == pytest.approx(rewards[::-1], abs=1e-4)

    def test_a_marker_that_is_never_used_is_told_until_one_is(self, model: Path, baseline: Path) -> None:
        scorer = build(VrCliReward(), around(model, baseline))
        assert scorer.notes == ()
        scorer.score([response(RECORD, "late"), response(RECORD, "early")])
        scorer.score([response(RECORD, "soon")])
        [note] = scorer.notes
        assert "none of 2 responses has one of the markers ['In summary:'" in note and "each is a plan as a whole" in note
        scorer.score([response(RECORD, "In summary: late")])
        assert scorer.notes == ()

    def test_no_plan_earns_what_is_set_without_a_pass(self, model: Path, baseline: Path) -> None:
        answers = [response(RECORD, "In summary: ")]
        for settings, wanted in (
            ({"mode": "raw"}, 0.0),
            ({"empty_plan_reward": -0.5}, -0.5),
            ({"mode": "positive_fraction"}, -1.0),
        ):
            scores = build(VrCliReward(**settings), around(model, baseline)).score(answers)
            assert list(scores.rewards) == [wanted]
            assert scores.metrics["improvement"] == [0.0]

    def test_a_plan_is_cut_or_the_response_is_invalid(self, model: Path, baseline: Path) -> None:
        answers = [response(RECORD, "word " * 700), response(RECORD, "short")]
        found = build(VrCliReward(), around(model, baseline)).score(answers)
        assert found.rewards[0] != found.rewards[0]
        assert found.rewards[1] == found.rewards[1]
        assert "max_length_tokens=512; set max_plan_tokens" in str(found.failures[0])
        cut = build(VrCliReward(max_plan_tokens=5), around(model, baseline)).score(answers)
        assert cut.metrics["plan_tokens"][0] == 5
        assert cut.rewards[0] == cut.rewards[0]

    def test_another_model_is_refused(self, baseline: Path, tmp_path: Path) -> None:
        other = tiny_model(tmp_path, seed=1)
        with pytest.raises(
            ConfigError, match=r"not the model that the baseline was computed with.*as 'model' what this one has as 'generator'"
        ):
            build(VrCliReward(), around(other, baseline))

    @pytest.mark.parametrize(
        ("record", "row_id", "says"), [(RECORD, "train-9", "has no row"), (OTHER, "train-0", "has another text")]
    )
    def test_other_data_are_refused(self, model: Path, baseline: Path, record: Record, row_id: str, says: str) -> None:
        scorer = build(VrCliReward(), around(model, baseline))
        with pytest.raises(ConfigError, match=f"{says} for prompt '{row_id}'.*stage vr_cli_baseline"):
            scorer.score([response(record, "plan", row_id)])

    def test_a_baseline_that_cannot_be_repeated_is_refused(self, model: Path, baseline: Path, tmp_path: Path) -> None:
        rows = read_table("baseline", baseline / TABLE_NAME).to_pylist()
        shifted = [{**row, "mean_nll": row["mean_nll"] + 0.001} for row in rows]
        write_table("baseline", to_table("baseline", shifted), tmp_path / TABLE_NAME)
        (tmp_path / ABOUT_NAME).write_bytes((baseline / ABOUT_NAME).read_bytes())
        answers = [response(RECORD, "plan")]
        with pytest.raises(ConfigError, match=r"differs by 0\.1\d* %, more than max_noise_percent=0\.02"):
            build(VrCliReward(), around(model, tmp_path)).score(answers)
        build(VrCliReward(max_noise_percent=0.2), around(model, tmp_path)).score(answers)

    def test_what_is_no_baseline_is_told(self, model: Path, baseline: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="holds no baseline of completions"):
            build(VrCliReward(), around(model, tmp_path))
        about = json.loads((baseline / ABOUT_NAME).read_text())
        (tmp_path / ABOUT_NAME).write_text(json.dumps({**about, "rows": 3}))
        (tmp_path / TABLE_NAME).write_bytes((baseline / TABLE_NAME).read_bytes())
        with pytest.raises(ConfigError, match="has 2 rows and should have 3"):
            build(VrCliReward(), around(model, tmp_path))

    def test_without_a_baseline_it_is_computed(self, model: Path, baseline: Path) -> None:
        kept = build(VrCliReward(mode="raw"), around(model, baseline))
        bare = VrCliScorer(VrCliReward(mode="raw"), HOW, FrozenGenerator(model, HOW, gpus=0.0), None)
        answers = [
            response(RECORD, "it was late"),
            replace(response(OTHER, "gold", "test-0"), label=None, columns={"completion": "Gold."}),
        ]
        assert list(bare.score(answers).rewards) == pytest.approx(list(kept.score(answers).rewards), abs=1e-3)
        with pytest.raises(ConfigError, match="'train-0' has no completion"):
            bare.score([replace(answers[0], label=None)])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"levels": [1.0]}, "1 numbers and cuts_percent 3"),
        ({"cuts_percent": [1.0, 1.0, 2.0]}, "do not rise"),
        ({"markers": [], "require_marker": True}, "at least one"),
        ({"mode": "best"}, "thresholds"),
    ],
)
def test_rewards_that_cannot_be_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        VrCliReward(**settings)


def test_a_block_without_a_place_for_the_plan_is_refused() -> None:
    with pytest.raises(ValidationError, match="has 0 places"):
        VrCliBaselineConfig(plan_block="### Plan ###")
