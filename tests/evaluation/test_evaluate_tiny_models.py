"""The evaluate and compare stages on tiny models with transformers generation, end to end and number by number."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lxml import html
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from data_processing.config import DataConfig, ProceduresConfig
from data_processing.errors import ConfigError, DataError, DivergedError
from data_processing.prepare import prepare
from data_processing.procedures.checker import check
from data_processing.schemas import read_table, to_table, write_table
from evaluation.config import CompareConfig, EvaluateConfig, Metric
from evaluation.evaluate import evaluate
from evaluation.evaluation_artifact import read_evaluation
from evaluation.job import EvaluationJob
from evaluation.logprobs import token_logprobs
from evaluation.metrics import METRICS
from evaluation.row_selection import draw_rows
from rlhf_core.batching.templates import Renderer
from rlhf_core.events import EventLog
from rlhf_core.models.load import load_scorer, load_tokenizer
from rlhf_core.settings.rollout import RolloutEngine
from tasks.compare import STAGE as COMPARE
from tasks.evaluate import STAGE as EVALUATE
from tasks.runtime.contract.context import ArtifactRef, StageContext
from tests.conftest import REPOSITORY
from tests.rollout.sampled import wide_headed_model
from tests.tiny_models import CHATML, alibi_model, tiny_model

pytestmark = pytest.mark.seconds

REFUSES_ODD = "{% for message in messages if message['content'] == 'odd' %}{{ raise_exception('nothing odd here') }}{% endfor %}"

SETTINGS = EvaluateConfig(
    engine=RolloutEngine.hf,
    dtype="fp32",
    max_new_tokens=12,
    max_prompts=6,
    samples_per_prompt=2,
    temperature=0.7,
    bootstrap_resamples=200,
)


@dataclasses.dataclass(frozen=True)
class World:
    """Two tiny models, a reward model with a head that scores something, and procedures data."""

    base: Path
    other: Path
    reward_model: Path
    data: Path

    def job(self, output: Path, model: Path, **changes: Any) -> EvaluationJob:
        config = SETTINGS.model_copy(update=changes)
        events = EventLog(output.with_suffix(".events.jsonl"))
        return EvaluationJob(config, model, "m", self.base, self.data, self.reward_model, output, seed=3, events=events)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    sizes = ProceduresConfig(difficulty=1, sft_rows=2, preference_pairs=2, prompt_rows=2, validation_rows=2, test_rows=8)
    prepare(DataConfig(procedures=sizes), folder / "data", seed=1)
    base, other = (tiny_model(folder, "llama", seed=seed) for seed in (0, 1))
    scorer = load_scorer(base, dtype="fp32", attention="sdpa", new_head=True)
    torch.manual_seed(0)
    torch.nn.init.normal_(scorer.score.weight, std=1.0)
    scorer.save_pretrained(folder / "reward")
    load_tokenizer(base).save_pretrained(folder / "reward")
    return World(base, other, folder / "reward", folder / "data")


@pytest.fixture(scope="module")
def measured(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluation of the second model, whose base is the first."""
    output = tmp_path_factory.mktemp("evaluations") / "other"
    evaluate(world.job(output, world.other))
    return output


def write_plain_prompts(data: Path) -> None:
    """Three short test prompts without labels."""
    rows = [{"id": str(i), "prompt": [{"role": "user", "content": f"hello {i}"}], "label": None, "source": "s"} for i in range(3)]
    write_table("prompts", to_table("prompts", rows), data / "prompts" / "test.parquet")


def metrics_of(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    found: dict[str, dict[str, dict[str, float]]] = json.loads((folder / "metrics.json").read_text())["metrics"]
    return found


def events_of(job: EvaluationJob, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in job.events.path.read_text().splitlines()]
    return [line for line in lines if line["type"] == kind]


def test_every_metric_has_an_interval_in_the_decodings_it_applies_to(measured: Path) -> None:
    metrics = metrics_of(measured)
    generated = {"reward", "length", "truncated"} | {
        f"procedures.{n}" for n in ("score", "valid", "accuracy", "soundness", "efficiency")
    }
    assert set(metrics["greedy"]) == generated
    assert set(metrics["sampled"]) == generated | {"kl", "kl_per_token"}
    assert set(metrics["held_out"]) == {"perplexity"}
    for table in metrics.values():
        for interval in table.values():
            assert interval["low"] <= interval["mean"] <= interval["high"]
            assert interval["n"] == 6


def test_a_model_with_code_of_its_own_is_measured_as_the_model_it_is(world: World, measured: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(world.other, tmp_path / "mine"))
    code = "from transformers import LlamaForCausalLM\n\nclass Mine(LlamaForCausalLM):\n    pass\n"
    (folder / "modeling_mine.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}}))
    evaluate(world.job(tmp_path / "evaluation", folder))
    # Its packed rows are computed with transformers' own masks, so the last digits differ.
    found, expected = metrics_of(tmp_path / "evaluation"), metrics_of(measured)
    assert found.keys() == expected.keys()
    for decoding, metrics in expected.items():
        for metric, interval in metrics.items():
            assert found[decoding][metric] == pytest.approx(interval, abs=1e-5, rel=1e-5)


def test_predictions_are_all_samples_of_every_prompt_with_their_labels(world: World, measured: Path) -> None:
    predictions = read_table("predictions", measured / "predictions.parquet").to_pylist()
    table = read_table("prompts", world.data / "prompts" / "test.parquet").to_pylist()
    drawn = draw_rows([row["id"] for row in table], [row["source"] for row in table], 6, seed=3)
    assert drawn != list(range(6))
    prompts = [table[i] for i in drawn]
    for decoding, samples in (("sampled", 2), ("greedy", 1)):
        rows = [row for row in predictions if row["decoding"] == decoding]
        assert [row["prompt_id"] for row in rows] == [prompt["id"] for prompt in prompts for _ in range(samples)]
    assert len({row["id"] for row in predictions}) == 18
    assert {row["label"] for row in predictions} == {prompt["label"] for prompt in prompts}
    assert {row["source"] for row in predictions} == {"procedures"}
    sampled = [row["response"] for row in predictions if row["decoding"] == "sampled"]
    assert len(set(sampled)) > len(prompts)


def test_procedures_scores_are_the_checkers(measured: Path) -> None:
    evaluation = read_evaluation(measured)
    for row in evaluation.predictions:
        scores = {score["metric"]: score["value"] for score in evaluation.scores_by_answer[row["id"]]}
        assert scores["procedures.score"] == check(row["label"], row["response"]).score
        assert scores["length"] == row["response_tokens"]
        assert scores["truncated"] == (row["finish_reason"] == "length")


def test_the_reward_is_what_transformers_gives_for_the_sampled_tokens(world: World, measured: Path) -> None:
    evaluation = read_evaluation(measured)
    tokenizer = AutoTokenizer.from_pretrained(world.base)
    model = AutoModelForSequenceClassification.from_pretrained(world.reward_model).eval()
    checked = 0
    for row in evaluation.predictions:
        ids = tokenizer.encode(row["response"], add_special_tokens=False)
        if row["finish_reason"] != "length" or len(ids) != row["response_tokens"]:
            continue  # the text alone does not tell the tokens
        prompt = Renderer(tokenizer).prompt_ids(row["prompt"])
        with torch.no_grad():
            hidden = model.model(torch.tensor([prompt + ids])).last_hidden_state[0, -1]
            expected = float(model.score(hidden))
        value = next(s["value"] for s in evaluation.scores_by_answer[row["id"]] if s["metric"] == "reward")
        checked += abs(value - expected) < 1e-4
    assert checked >= 1


def test_bad_answers_are_those_worth_less(world: World, measured: Path, tmp_path: Path) -> None:
    worth = [s["value"] for own in read_evaluation(measured).scores_by_answer.values() for s in own if s["metric"] == "reward"]
    median = sorted(worth)[len(worth) // 2]
    for limit, name in ((median, "some"), (min(worth), "none")):
        job = world.job(tmp_path / name, world.other, metrics=["reward"], bad_below=limit)
        evaluate(job)
        own = [score for scores in read_evaluation(tmp_path / name).scores_by_answer.values() for score in scores]
        values = {metric: [s["value"] for s in own if s["metric"] == metric] for metric in ("reward", "reward.bad")}
        assert values["reward.bad"] == [float(value < limit) for value in values["reward"]]
        told = [line["message"] for line in events_of(job, "warning") if "evaluate.bad_below" in line["message"]]
        assert len(told) == (name == "none") and all(f"is worth less than evaluate.bad_below={limit:g}" in line for line in told)
        share = metrics_of(tmp_path / name)["sampled"]["reward.bad"]
        assert 0.0 <= share["low"] <= share["mean"] <= share["high"] <= 1.0 and (share["high"] > 0.3)


def test_kl_of_a_model_to_itself_is_exactly_zero(world: World, tmp_path: Path) -> None:
    copy = shutil.copytree(world.base, tmp_path / "copy")
    for dtype, model in (("fp32", world.base), ("fp32", copy), ("bf16", copy)):
        table = evaluate(world.job(tmp_path / f"{dtype} {model.name}", model, metrics=["kl"], dtype=dtype))
        assert (table["sampled"]["kl"].mean, table["sampled"]["kl"].low, table["sampled"]["kl"].high) == (0.0, 0.0, 0.0)
        assert table["sampled"]["kl_per_token"].mean == 0.0


def test_kl_estimates_the_divergence_at_the_sampling_temperature(world: World, tmp_path: Path) -> None:
    """With one new token the divergence can be computed exactly; many samples come close to it."""
    write_plain_prompts(tmp_path)
    job = world.job(tmp_path / "one", world.other, metrics=["kl"], max_new_tokens=1, samples_per_prompt=300, greedy=False)
    table = evaluate(dataclasses.replace(job, data=tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(world.base)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (world.other, world.base))
    prompts = read_table("prompts", tmp_path / "prompts" / "test.parquet").to_pylist()
    exact = []
    for prompt in prompts:
        ids = torch.tensor([Renderer(tokenizer).prompt_ids(prompt["prompt"])])
        with torch.no_grad():
            p, q = (torch.log_softmax(m(ids).logits[0, -1] / SETTINGS.temperature, -1) for m in (ours, theirs))
        exact.append(float((p.exp() * (p - q)).sum()))
    assert table["sampled"]["kl"].mean == pytest.approx(sum(exact) / len(exact), rel=0.15)
    assert table["sampled"]["kl"].mean == pytest.approx(table["sampled"]["kl_per_token"].mean)


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gpt2", "gemma"])
def test_log_probs_and_perplexity_equal_transformers_own_loss(arch: Any, world: World, tmp_path: Path) -> None:
    model_folder = tiny_model(tmp_path, arch)
    tokenizer = load_tokenizer(model_folder)
    messages = [
        [{"role": "user", "content": f"question {i} " * (i + 1)}, {"role": "assistant", "content": "yes " * (i + 1)}]
        for i in range(4)
    ]
    data = tmp_path / "data"
    rows = [{"id": str(i), "messages": m} for i, m in enumerate(messages)]
    write_table("sft", to_table("sft", rows), data / "sft" / "test.parquet")
    job = dataclasses.replace(world.job(tmp_path / "out", model_folder), data=data)
    scores = METRICS["perplexity"](job, [])
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    total, tokens = 0.0, 0
    for score, conversation in zip(scores, messages, strict=True):
        row = Renderer(tokenizer).conversation(conversation)
        labels = [i if t else -100 for i, t in zip(row.ids, row.is_target, strict=True)]
        with torch.no_grad():
            loss = float(model(torch.tensor([row.ids]), labels=torch.tensor([labels])).loss)
        assert score.value == pytest.approx(math.exp(loss), rel=1e-4)
        assert score.weight == row.n_targets
        total, tokens = total + loss * row.n_targets, tokens + row.n_targets
    mean = sum(math.log(s.value) * (s.weight or 0) for s in scores) / tokens
    assert math.exp(mean) == pytest.approx(math.exp(total / tokens), rel=1e-4)


def test_scoring_does_not_depend_on_how_rows_are_packed(world: World, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(world.base)
    table = read_table("sft", world.data / "sft" / "test.parquet").to_pylist()
    rows = [Renderer(tokenizer).conversation(row["messages"]) for row in table]
    together = token_logprobs(world.job(tmp_path / "out", world.base), world.base, rows)
    alone = token_logprobs(world.job(tmp_path / "out", world.base, micro_batch_tokens=16), world.base, rows)
    assert [len(values) for values in together] == [row.n_targets for row in rows]
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_scoring_pads_a_model_that_packing_would_mix_up_and_says_so_once(world: World, tmp_path: Path) -> None:
    model = alibi_model(tmp_path)
    table = read_table("sft", world.data / "sft" / "test.parquet").to_pylist()
    rows = [Renderer(load_tokenizer(model)).conversation(row["messages"]) for row in table]
    job = world.job(tmp_path / "out", model)
    together = token_logprobs(job, model, rows)
    alone = [token_logprobs(job, model, [row])[0] for row in rows]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    assert job.events.path.read_text().count("batches are padded") == 1


def test_the_same_seed_gives_the_same_numbers(world: World, measured: Path, tmp_path: Path) -> None:
    evaluate(world.job(tmp_path / "again", world.other))
    assert metrics_of(tmp_path / "again") == metrics_of(measured)


def test_metrics_without_their_input_are_left_out_with_a_warning(world: World, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_plain_prompts(data)
    job = dataclasses.replace(world.job(tmp_path / "out", world.other), data=data, reward_model=None)
    table = evaluate(job)
    assert set(table["sampled"]) == {"kl", "kl_per_token", "length", "truncated"}
    warnings = [event["message"] for event in events_of(job, "warning")]
    assert [w.split(":")[0] for w in warnings] == [f"metric '{m}' is left out" for m in ("procedures", "reward", "perplexity")]
    assert events_of(job, "summary")[0]["values"]["sampled.length"] == table["sampled"]["length"].mean


def test_no_metric_left_is_an_error(world: World, tmp_path: Path) -> None:
    job = dataclasses.replace(world.job(tmp_path / "out", world.other, metrics=["reward"]), reward_model=None)
    with pytest.raises(ConfigError, match=r"none of \['reward'\] can be measured here"):
        evaluate(job)


def test_models_with_other_tokens_have_no_kl(world: World, tmp_path: Path) -> None:
    other = tiny_model(tmp_path, "gemma")
    with pytest.raises(ConfigError, match=r"'kl' cannot apply: the tokenizers of .* differ"):
        METRICS["kl"](world.job(tmp_path / "out", other), [])


def test_answers_longer_than_the_models_positions_are_refused_before_generating(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluate.max_new_tokens=2048 behind the longest test prompt of \d+ tokens"):
        evaluate(world.job(tmp_path / "out", world.base, max_new_tokens=2048))


def write_test_split(data: Path, prompts: dict[str, str], answers: Sequence[str] = ()) -> None:
    """Test prompts by id, of a source that is the id's first letter, and sft rows with these answers."""
    rows = [
        {"id": name, "prompt": [{"role": "user", "content": text}], "label": None, "source": name[0]}
        for name, text in prompts.items()
    ]
    write_table("prompts", to_table("prompts", rows), data / "prompts" / "test.parquet")
    talks = [
        {"id": f"row{i}", "messages": [{"role": "user", "content": "go on"}, {"role": "assistant", "content": answer}]}
        for i, answer in enumerate(answers)
    ]
    write_table("sft", to_table("sft", talks), data / "sft" / "test.parquet")


def test_every_source_is_measured_and_counted(world: World, tmp_path: Path) -> None:
    write_test_split(tmp_path, {f"{source}{i}": f"hello {i}" for source, n in (("a", 30), ("b", 10)) for i in range(n)})
    job = dataclasses.replace(world.job(tmp_path / "out", world.base, metrics=["length"], max_prompts=8), data=tmp_path)
    evaluate(job)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["rows"]["prompts"]["sources"] == {"a": {"measured": 6, "of": 30}, "b": {"measured": 2, "of": 10}}
    assert (found["rows"]["prompts"]["measured"], found["rows"]["prompts"]["of"]) == (8, 40)
    lengths = {source: table["sampled"]["length"] for source, table in found["sources"].items()}
    assert {source: length["n"] for source, length in lengths.items()} == {"a": 6, "b": 2}
    whole = found["metrics"]["sampled"]["length"]["mean"]
    assert whole == pytest.approx((6 * lengths["a"]["mean"] + 2 * lengths["b"]["mean"]) / 8)


def test_other_models_with_the_seed_answer_the_same_prompts(world: World, tmp_path: Path) -> None:
    asked = []
    for name, model in (("base", world.base), ("other", world.other)):
        evaluate(world.job(tmp_path / name, model, metrics=["length"], max_prompts=3))
        asked.append({row["prompt_id"] for row in read_evaluation(tmp_path / name).predictions})
    assert asked[0] == asked[1]
    assert len(asked[0]) == 3


def test_rows_that_do_not_fit_the_model_are_left_out_counted_and_named(world: World, tmp_path: Path) -> None:
    """A model with learned positions cannot score beyond them at all."""
    model = tiny_model(tmp_path, "gpt2")
    prompts = {f"a{i}": "hello" for i in range(20)} | {"b-long": "many words " * 200}
    write_test_split(tmp_path, prompts, ["yes"] * 20 + ["no and no " * 200])
    job = world.job(tmp_path / "out", model, metrics=["length", "perplexity"], max_prompts=None)
    evaluate(dataclasses.replace(job, data=tmp_path, base=model))
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())["rows"]
    assert {name: (counts["measured"], counts["of"]) for name, counts in rows.items()} == {"prompts": (20, 21), "sft": (20, 21)}
    assert rows["prompts"]["sources"]["b"] == {"measured": 0, "of": 1}
    assert [row["id"] for row in rows["prompts"]["left_out"]] == ["b-long"]
    assert [row["id"] for row in rows["sft"]["left_out"]] == ["row20"]
    assert metrics_of(tmp_path / "out")["held_out"]["perplexity"]["n"] == 20
    warnings = [event["message"] for event in events_of(job, "warning")]
    assert len(warnings) == 2
    assert "1 of 21 rows are too long for the model and left out: 'b-long'" in warnings[1]


def test_rows_that_the_template_refuses_are_left_out_counted_and_named(world: World, tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    (model / "chat_template.jinja").write_text(REFUSES_ODD + CHATML)
    write_test_split(tmp_path, {f"a{i}": "hello" for i in range(20)} | {"b-odd": "odd"}, ["yes"] * 20 + ["odd"])
    job = world.job(tmp_path / "out", model, metrics=["length", "perplexity"], max_prompts=None)
    job = dataclasses.replace(job, data=tmp_path, base=model)
    evaluate(job)
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())["rows"]
    assert {name: (counts["measured"], counts["of"]) for name, counts in rows.items()} == {"prompts": (20, 21), "sft": (20, 21)}
    assert "(id b-odd)" in rows["prompts"]["refused"][0] and "(id row20)" in rows["sft"]["refused"][0]
    warned = [event["message"] for event in events_of(job, "warning")]
    assert len(warned) == 2 and all("1 of 21 rows drawn were left out" in line and "nothing odd" in line for line in warned)
    with pytest.raises(DataError, match=r"max_dropped_fraction=0\.01.*b-odd.*nothing odd"):
        evaluate(dataclasses.replace(job, config=job.config.model_copy(update={"max_dropped_fraction": 0.01}), counts={}))


@pytest.mark.parametrize("table", ["prompts", "sft"])
def test_more_rows_that_do_not_fit_than_tolerated_stop_the_stage(table: str, world: World, tmp_path: Path) -> None:
    model = tiny_model(tmp_path, "gpt2")
    long = "many words " * 200
    write_test_split(tmp_path, {"a": "hi", "b": long if table == "prompts" else "hi"}, ["yes", long if table == "sft" else "no"])
    job = world.job(tmp_path / "out", model, metrics=["length", "perplexity"])
    with pytest.raises(DataError, match=rf"table '{table}', split 'test': 1 of the 2 rows drawn .*max_dropped_fraction=0.05"):
        evaluate(dataclasses.replace(job, data=tmp_path, base=model))
    assert not (tmp_path / "out" / "predictions.parquet").exists()


def test_data_without_test_prompts_is_refused(world: World, tmp_path: Path) -> None:
    job = dataclasses.replace(world.job(tmp_path / "out", world.base), data=tmp_path)
    with pytest.raises(DataError, match="table 'prompts': no file at"):
        evaluate(job)


def test_a_reward_model_that_gives_nan_stops_the_stage(world: World, tmp_path: Path) -> None:
    broken = load_scorer(world.reward_model, dtype="fp32", attention="sdpa", new_head=False)
    torch.nn.init.constant_(broken.score.weight, math.nan)
    broken.save_pretrained(tmp_path / "reward")
    load_tokenizer(world.base).save_pretrained(tmp_path / "reward")
    job = dataclasses.replace(world.job(tmp_path / "out", world.base, metrics=["reward"]), reward_model=tmp_path / "reward")
    with pytest.raises(DivergedError, match="scores are not finite, the first is reward=nan"):
        evaluate(job)


def test_the_table_of_metrics_is_what_the_settings_allow() -> None:
    assert set(METRICS) == set(Metric.__args__)  # type: ignore[attr-defined]


def test_both_stages_run_end_to_end_and_leave_a_verdict_and_a_report(world: World, tmp_path: Path) -> None:
    evaluated = {}
    for name, model in (("base", world.base), ("sft", world.other), ("online", world.base)):
        output = tmp_path / name
        inputs = {"model": model, "base": world.base, "data": world.data, "reward_model": world.reward_model}
        EVALUATE.run(_context(SETTINGS, inputs, output))
        evaluated[name] = output
    config = CompareConfig(
        primary_metric="reward",
        baseline="sft",
        candidates=["online"],
        models=["base", "sft", "online"],
        bootstrap_resamples=200,
        samples_shown=3,
    )
    COMPARE.run(_context(config, evaluated, tmp_path / "compare"))
    verdict = json.loads((tmp_path / "compare" / "verdict.json").read_text())
    assert set(verdict["models"]) == {"base", "sft", "online"}
    # The same weights under another name answer the same: no difference at all.
    assert verdict["models"]["online"] == verdict["models"]["base"]
    assert verdict["paired"]["online"] == verdict["paired"]["base"]
    page = html.parse(tmp_path / "compare" / "report.html").getroot()
    assert len(page.get_element_by_id("samples").xpath(".//article")) == 3


VLLM_SCRIPT = """
import sys
from pathlib import Path
from evaluation.config import EvaluateConfig
from evaluation.evaluate import evaluate
from evaluation.job import EvaluationJob
from rlhf_core.events import EventLog
base, copy, data, output = map(Path, sys.argv[1:])
for engine in ("hf", "vllm"):
    config = EvaluateConfig(engine=engine, dtype="fp32", metrics=["kl", "length"], max_new_tokens=12, kv_cache_mib=16)
    events = EventLog(output / f"{engine}.jsonl")
    evaluate(EvaluationJob(config, copy, "m", base, data, None, output / engine, seed=3, events=events))
"""


@pytest.mark.slow
def test_vllm_answers_as_transformers_and_leaves_scoring_undisturbed(tmp_path: Path) -> None:
    """In a process of its own, as a stage is: vLLM changes global state that other tests would see."""
    pytest.importorskip("vllm")
    write_plain_prompts(tmp_path)
    base = wide_headed_model(tmp_path / "base", "llama", tied=True)
    copy = shutil.copytree(base, tmp_path / "copy")
    paths = [str(path) for path in (base, copy, tmp_path, tmp_path / "out")]
    subprocess.run([sys.executable, "-c", VLLM_SCRIPT, *paths], check=True, cwd=REPOSITORY, timeout=300)
    answers = {}
    for engine in ("hf", "vllm"):
        rows = read_table("predictions", tmp_path / "out" / engine / "predictions.parquet").to_pylist()
        answers[engine] = [(row["prompt_id"], row["response"]) for row in rows if row["decoding"] == "greedy"]
        assert metrics_of(tmp_path / "out" / engine)["sampled"]["kl"]["mean"] == 0.0
    assert answers["hf"] == answers["vllm"]


def _context(config: Any, inputs: dict[str, Path], output: Path) -> StageContext[Any]:
    output.mkdir()
    refs = {n: ArtifactRef(kind="k", key=f"key-of-{p.name}", uri=p.as_uri(), sha256="0", producer="p") for n, p in inputs.items()}
    events = EventLog(output.with_suffix(".events.jsonl"))
    return StageContext(config, inputs, refs, output, output / "resume", seed=3, attempt=1, events=events)
