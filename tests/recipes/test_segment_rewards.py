"""Reward models of segments: where they are cut, what the loss is, and that the same is read in training and by rewards."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from data_processing.errors import ConfigError
from data_processing.schemas import read_table, to_table, write_table
from flows.settings.layers import validate
from rlhf_core.batching.rows import TokenRow
from rlhf_core.batching.templates import Renderer
from rlhf_core.credit.reading import ENTROPY_MODEL_NAME, read_reading
from rlhf_core.credit.reward_model_folder import reward_model_scorer
from rlhf_core.credit.segment_reward_model import SegmentScorer
from rlhf_core.credit.segments import segments
from rlhf_core.engine.convert import convert_checkpoint
from rlhf_core.models.load import load_tokenizer
from rlhf_core.recipes.examples import pair
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.recipes.reward_model import train_reward_model
from rlhf_core.recipes.segment_reward import _read_at_ends
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.build import Around, build_scorer
from rlhf_core.serving.served_model import Asked, ServedModel
from rlhf_core.settings.credit import SegmentCredit
from rlhf_core.settings.models import ConvertConfig
from rlhf_core.settings.rewards.models import RewardModelReward
from rlhf_core.settings.segments import SegmentSettings
from rlhf_core.settings.training import EngineSettings, OptimizerSettings, Packing
from tests.recipes.gradients import gradients_of
from tests.recipes.small_jobs import FULL, curve, engine, job, reward_config, same_weights, summary, weights, write_data
from tests.recipes.test_resume_is_exact import crash
from tests.tiny_models import Architecture

Models = dict[Architecture, Path]
# Half of the tokens of a tiny random model are predicted with more.
THRESHOLD = 5.84


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), train_rows=10, validation_rows=6)


def srm(model: Path, data: Path, work: Path, *, threshold: float = THRESHOLD, **changes: Any) -> TrainingJob[Any]:
    segment = {"threshold_nats": threshold, **changes.pop("segment", {})}
    return job(reward_config(granularity="segment", segment=segment, **changes), model, data, work)


def scorer_of(folder: Path, policy: Path, tokens: int = 256, packing: Packing = Packing.auto) -> Any:
    return reward_model_scorer(folder, policy, dtype="fp32", attention="sdpa", micro_batch_tokens=tokens, packing=packing)


def responses(model: Path, data: Path) -> list[ScoredResponse]:
    renderer, found = Renderer(load_tokenizer(model)), []
    for row in read_table("preference", data / "preference" / "validation.parquet").to_pylist():
        for side in pair(renderer, row).rows:
            start = side.prompt_length
            found.append(ScoredResponse(row["id"], row["prompt"], None, side.ids[:start], side.ids[start:], ""))
    return found


@torch.no_grad()
def entropies(model: Path, response: ScoredResponse) -> list[float]:
    """Straight from transformers: of the distributions that predicted the response's tokens."""
    ids = torch.tensor([[*response.prompt_ids, *response.response_ids]])
    logits = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(ids).logits[0, len(response.prompt_ids) - 1 : -1]
    found: list[float] = torch.distributions.Categorical(logits=logits).entropy().tolist()
    return found


@pytest.fixture(scope="module")
def trained(models: Models, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingJob[Any], Path]:
    work = tmp_path_factory.mktemp("trained")
    run = srm(models["llama"], data, work, batch_size=10, max_steps=3, learning_rate=3e-3)
    train_reward_model(run)
    convert_checkpoint(run.output, models["llama"], work / "model", ConvertConfig(dtype="fp32"), lineage={})
    return run, work / "model"


def test_a_response_is_worth_the_mean_of_what_is_read_where_its_segments_end(
    models: Models, data: Path, trained: tuple[TrainingJob[Any], Path]
) -> None:
    run, folder = trained
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    scorer, worth = scorer_of(folder, models["llama"]), []
    all_responses = responses(models["llama"], data)
    counts = []
    for response, (spans, earned) in zip(all_responses, scorer.read(all_responses), strict=True):
        expected = segments(entropies(models["llama"], response), len(response.response_ids), THRESHOLD, ended=True)
        assert spans == expected
        ids = torch.tensor([[*response.prompt_ids, *response.response_ids]])
        values = model.score(model.base_model(ids).last_hidden_state[0])[:, 0]
        ends = [len(response.prompt_ids) + end - 1 for _, end in spans]
        assert earned == pytest.approx(values[ends].tolist(), abs=1e-5)
        worth.append(fmean(earned))
        counts.append(len(spans))
    assert scorer.score(all_responses) == pytest.approx(worth, abs=1e-6)
    assert max(counts) > 2 and min(counts) < max(counts), "the tiny model is unsure now and then"
    chosen, rejected = torch.tensor(worth[::2]), torch.tensor(worth[1::2])
    told = summary(run)
    assert told["eval_score_mean"] == pytest.approx(fmean(worth), abs=1e-5), "training and rewards read the same"
    assert told["eval_accuracy"] == (chosen > rejected).float().mean().item()
    assert told["eval_segments_chosen"] == pytest.approx(fmean(counts[::2]))
    assert told["score_std"] == pytest.approx(torch.tensor(worth).std().item(), abs=1e-5)


def test_the_loss_is_bradley_terry_less_the_entropy_of_the_credit(models: Models, data: Path, tmp_path: Path) -> None:
    run = srm(models["llama"], data, tmp_path, batch_size=10, max_steps=2, segment={"entropy_coef": 0.5})
    train_reward_model(run)
    for loss, ranking, spread in zip(*(curve(run, name) for name in ("loss", "ranking_loss", "credit_entropy")), strict=True):
        assert loss == pytest.approx(ranking - 0.5 * spread, abs=1e-6)
    assert curve(run, "ranking_loss")[0] == pytest.approx(0.693147, abs=0.2)
    assert curve(run, "credit_entropy")[0] > 0


@pytest.mark.parametrize("threshold", [1000.0, 2000.0])
def test_one_segment_is_a_reward_model_of_answers(models: Models, data: Path, tmp_path: Path, threshold: float) -> None:
    whole = srm(models["llama"], data, tmp_path / "segment", threshold=threshold)
    answers = job(reward_config(center_coef=0.0), models["llama"], data, tmp_path / "answer")
    for run in (whole, answers):
        train_reward_model(run)
    # Rows that are read at other places share other prompts, so that sums are rounded otherwise.
    for name, value in weights(answers).items():
        torch.testing.assert_close(weights(whole)[name], value, atol=1e-4, rtol=1e-3)
    assert curve(whole, "loss") == pytest.approx(curve(answers, "loss"), abs=1e-5)


def test_a_run_that_is_resumed_ends_in_the_same_bits_and_scores_entropies_once(
    models: Models, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, halved = (srm(models["llama"], data, tmp_path / name, checkpoint_every_steps=2) for name in ("whole", "halved"))
    train_reward_model(whole)
    crash(train_reward_model, halved, at=4)
    monkeypatch.setattr("rlhf_core.recipes.segment_reward._computed", None)  # they are known
    train_reward_model(halved)
    assert same_weights(whole, halved)
    assert (whole.output / "params.json").read_bytes() == (halved.output / "params.json").read_bytes()


@pytest.mark.parametrize("arch", ["llama", "gemma"])
def test_no_layout_changes_the_gradient(arch: Architecture, models: Models, data: Path, tmp_path: Path) -> None:
    smooth = OptimizerSettings(learning_rate=0.002, schedule="constant", warmup_fraction=0.0, epsilon=1.0)
    layouts = {"whole": {"micro_batch_tokens": 4096}, "cut": {"micro_batch_tokens": 16}, "padded": {"packing": "off"}}
    runs = {}
    for name, layout in layouts.items():
        changes = {"lora": FULL, "max_steps": 2, "batch_size": 7, "optimizer": smooth, "engine": engine(**layout)}
        runs[name] = partial(train_reward_model, srm(models[arch], data, tmp_path / name, **changes))
    found = gradients_of(runs)
    for name in ("cut", "padded"):
        for one, other in zip(found["whole"], found[name], strict=True):
            assert (other - one).norm() <= 2e-6 * one.norm()


@pytest.mark.parametrize(("tokens", "packing"), [(64, Packing.auto), (4096, Packing.auto), (128, Packing.off)])
def test_neither_batches_nor_padding_change_what_is_read(
    models: Models, data: Path, trained: tuple[TrainingJob[Any], Path], tokens: int, packing: Packing
) -> None:
    some = responses(models["llama"], data)
    together = scorer_of(trained[1], models["llama"], tokens, packing).read(some)
    scorer = scorer_of(trained[1], models["llama"])
    for response, (spans, earned) in zip(some, together, strict=True):
        [(alone, expected)] = scorer.read([response])
        assert spans == alone
        assert earned == pytest.approx(expected, abs=1e-5)


def test_the_artifact_has_the_fit_and_the_model_that_tells_segments(
    models: Models, trained: tuple[TrainingJob[Any], Path]
) -> None:
    run, folder = trained
    reading = read_reading(folder)
    assert reading is not None and reading.threshold_nats == THRESHOLD
    assert (reading.mean, reading.std) == (summary(run)["score_mean"], summary(run)["score_std"])
    params = json.loads((folder / "params.json").read_text())["reward_model"]["preference"]["peak"]["avg"][f"{THRESHOLD}"]
    assert params == [
        *(reading.lines[name]["w"] for name in ("mean", "std")),
        *(reading.lines[name]["b"] for name in ("mean", "std")),
    ]
    assert sum(reading.positions["count"].values()) == round(20 * summary(run)["segments"])
    assert (folder / ENTROPY_MODEL_NAME / "config.json").read_bytes() == (models["llama"] / "config.json").read_bytes()
    assert isinstance(scorer_of(folder, models["llama"]), SegmentScorer)


def spread(folder: Path, model: Path, **settings: Any) -> Any:
    around = Around(
        model, EngineSettings(dtype="fp32", micro_batch_tokens=256), {"reward_model": folder}, credit=SegmentCredit(**settings)
    )
    return build_scorer(RewardModelReward(), around)


def test_tokens_earn_what_their_segments_are_beyond_the_usual(
    models: Models, data: Path, trained: tuple[TrainingJob[Any], Path]
) -> None:
    some = responses(models["llama"], data)
    scorer = spread(trained[1], models["llama"])
    scores = scorer.score(some)
    assert list(scores.rewards) == [0.0] * len(some)
    for own, units, response in zip(scores.tokens, scores.units, some, strict=True):
        assert len(own) == len(response.response_ids) and own[-1] == 0.0, "the end token earns nothing"
        assert sum(own) == pytest.approx(sum(unit.credit for unit in units))
    raw = spread(trained[1], models["llama"], normalize=False).score(some)
    assert [fmean(unit.credit for unit in units) for units in raw.units] == pytest.approx(scores.metrics["evaluation"])
    whole = spread(trained[1], models["llama"], mode="segment_last_avg").score(some)
    reading = read_reading(trained[1])
    assert reading is not None and not whole.tokens
    expected = [(worth - reading.mean) / reading.std for worth in scores.metrics["evaluation"]]
    assert list(whole.rewards) == pytest.approx(expected, abs=1e-6)


def test_a_response_that_does_not_end_or_is_long_gets_the_penalty_instead(
    models: Models, data: Path, trained: tuple[TrainingJob[Any], Path]
) -> None:
    whole = responses(models["llama"], data)[0]
    cut = ScoredResponse(whole.prompt_id, whole.prompt, None, whole.prompt_ids, whole.response_ids[:-1], "")
    scores = spread(trained[1], models["llama"], no_eos_penalty=True, penalty=-0.3).score([whole, cut])
    assert scores.metrics["penalised"] == [0.0, 1.0]
    assert scores.units[1] == [] and scores.units[0] != []
    assert scores.tokens[1] == [-0.3] * len(cut.response_ids) and scores.tokens[0] != [-0.3] * len(whole.response_ids)
    limited = spread(trained[1], models["llama"], length_penalty_limit=len(cut.response_ids)).score([whole, cut])
    assert limited.metrics["penalised"] == [1.0, 0.0], "its end token counts"


def test_what_is_missing_is_named_with_the_entry_that_makes_it(
    models: Models, data: Path, trained: tuple[TrainingJob[Any], Path], tmp_path: Path
) -> None:
    answers = job(reward_config(max_steps=1), models["llama"], data, tmp_path)
    train_reward_model(answers)
    convert_checkpoint(answers.output, models["llama"], tmp_path / "model", ConvertConfig(dtype="fp32"), lineage={})
    with pytest.raises(ConfigError, match=r"gives one number a response.*reward_model\.granularity 'segment'"):
        spread(tmp_path / "model", models["llama"])
    without = shutil.copytree(trained[1], tmp_path / "without")
    (without / "params.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"no fit for reward_model; there are \[\].*granularity 'segment'.*allow_missing_fit"):
        spread(without, models["llama"])
    assert spread(without, models["llama"], allow_missing_fit=True).score(responses(models["llama"], data)[:1]).tokens
    assert spread(without, models["llama"], mode="segment_last_avg").score(responses(models["llama"], data)[:1]).rewards
    (without / "params.json").write_text('{"reward_model"')
    with pytest.raises(ConfigError, match=r"can be read from it.*run the entry again"):
        spread(without, models["llama"], allow_missing_fit=True)
    with pytest.raises(ConfigError, match="keep_best"):
        validate({"reward_model": {"granularity": "segment", "keep_best": "eval_loss"}})


def test_segments_of_several_turns_end_at_their_own_tokens(models: Models) -> None:
    """A user speaks between two answers of one response: his tokens are in no segment."""
    renderer = Renderer(load_tokenizer(models["llama"]))
    is_target = [False, False, True, True, False, False, True, True, True]
    row = TokenRow([*range(10, 18), renderer.stop_ids[0]], is_target)
    settings = SegmentSettings(threshold_nats=1.5)
    cut = _read_at_ends(row, [0.0, 0.0, 9.0, 0.0, 0.0], settings, renderer)
    assert [place for place, is_end in enumerate(cut.is_target) if is_end] == [3, 7]


def test_a_fit_that_cannot_be_made_is_told_before_anything_is_trained(models: Models, data: Path, tmp_path: Path) -> None:
    run = srm(models["llama"], data, tmp_path, segment={"fit_min_count": 10_000})
    with pytest.raises(ConfigError, match="fit_min_count=10000: no position has so many segments"):
        train_reward_model(run)
    assert curve(run, "loss") == []


def test_a_damaged_file_of_entropies_is_made_again(models: Models, data: Path, tmp_path: Path) -> None:
    once, again = (srm(models["llama"], data, tmp_path / name, max_steps=1) for name in ("once", "again"))
    train_reward_model(once)
    [kept] = once.resume.glob("entropies-*.safetensors")
    (again.resume / kept.name).write_bytes(kept.read_bytes()[:100])
    train_reward_model(again)
    assert same_weights(once, again)
    assert (again.resume / kept.name).read_bytes() == kept.read_bytes()


def test_a_text_without_messages_is_not_served(models: Models, trained: tuple[TrainingJob[Any], Path]) -> None:
    """Where the response begins is not known, so its segments are not."""
    served = ServedModel(trained[1], dtype="fp32", batch_tokens=256, max_length_tokens=200, gpus=0.0, trust_remote_code=False)
    [as_text, as_messages] = served.score(
        [Asked(None, "yes"), Asked([{"role": "user", "content": "what is the answer?"}], "the answer is yes")]
    )
    assert as_text.score is None and "give messages" in str(as_text.failure)
    assert as_messages.score is not None


@pytest.mark.slow
def test_a_planted_word_is_what_segments_with_it_earn(models: Models, tmp_path: Path) -> None:
    """Where the word `approve` makes an answer the better one, segments with it earn more, on answers that were not trained on."""
    rows = []
    for number in range(160):
        words = [["the answer is", "first read", "escalate to", "then apply"][(number + k) % 4] for k in range(3)]
        good, bad = ([*words[: number % 3], word, *words[number % 3 :]] for word in ("approve", "reject"))
        rows.append(
            {
                "id": f"row{number}",
                "prompt": [{"role": "user", "content": f"what is {number % 7}?"}],
                "chosen": [{"role": "assistant", "content": " ".join(good)}],
                "rejected": [{"role": "assistant", "content": " ".join(bad)}],
                "margin": None,
                "detail": None,
            }
        )
    for split, part in (("train", rows[:120]), ("validation", rows[120:])):
        write_table("preference", to_table("preference", part), tmp_path / "data" / "preference" / f"{split}.parquet")
    run = srm(models["llama"], tmp_path / "data", tmp_path, lora=FULL, batch_size=8, max_steps=60, learning_rate=3e-3)
    train_reward_model(run)
    assert summary(run)["eval_accuracy"] > 0.95
    convert_checkpoint(run.output, models["llama"], tmp_path / "model", ConvertConfig(dtype="fp32"), lineage={})
    tokenizer = load_tokenizer(models["llama"])
    inside, outside = [], []
    chosen = responses(models["llama"], tmp_path / "data")[::2]
    for response, (spans, earned) in zip(chosen, scorer_of(tmp_path / "model", models["llama"]).read(chosen), strict=True):
        texts = [tokenizer.decode(response.response_ids[:end]) for _, end in spans]
        before = [tokenizer.decode(response.response_ids[:start]) for start, _ in spans]
        for text, earlier, value in zip(texts, before, earned, strict=True):
            (inside if "approve" in text and "approve" not in earlier else outside).append(value)
    assert fmean(inside) > fmean(outside)
