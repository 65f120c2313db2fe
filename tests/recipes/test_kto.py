"""KTO: the loss of its definition around a reference point of the whole global batch, whatever the batch's cut."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoModelForCausalLM

from data_processing.errors import DataError
from data_processing.schemas import to_table, write_table
from rlhf_core.batching.rows import TokenRow
from rlhf_core.batching.templates import Renderer
from rlhf_core.models.load import load_tokenizer
from rlhf_core.recipes.examples import Example
from rlhf_core.recipes.kto import mismatched
from rlhf_core.recipes.preference import train_preference
from rlhf_core.settings.training import OptimizerSettings
from tests.recipes.small_jobs import FULL, curve, engine, job, preference_config, preference_row, summary, weights, write_data
from tests.tiny_models import Architecture

pytestmark = pytest.mark.seconds

Models = dict[Architecture, Path]

# All answers become likelier, those to other prompts too, so the reference point leaves zero.
RISING = {"method": "kto", "kto": {"desirable_weight": 2.0, "undesirable_weight": 0.1}, "beta": 0.3}
SMOOTH = OptimizerSettings(learning_rate=1e-2, schedule="constant", warmup_fraction=0.0, epsilon=1e-3)


def trained(models: Models, data: Path, work: Path, **changes: Any) -> Any:
    run = job(preference_config(**changes), models["llama"], data, work)
    train_preference(run)
    return run


def policy_after(run: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32).eval()
    model.load_state_dict({name.removeprefix("hf."): value for name, value in weights(run).items()}, strict=False)
    return model


@torch.no_grad()
def response_logp(model: Any, row: TokenRow) -> Tensor:
    logprobs = model(torch.tensor([row.ids])).logits[0, :-1].double().log_softmax(-1)
    each = logprobs.gather(1, torch.tensor(row.ids[1:])[:, None])[:, 0]
    return each[torch.tensor(row.is_target[1:])].sum()


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_the_loss_is_that_of_the_definition(packing: bool, models: Models, data: Path, tmp_path: Path) -> None:
    run = trained(models, data, tmp_path, lora=FULL, batch_size=10, max_steps=2, engine=engine(packing=packing), **RISING)
    policy, reference = policy_after(run), AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32).eval()
    renderer, rows = Renderer(load_tokenizer(run.model)), [preference_row(number) for number in range(1000, 1005)]

    def log_ratios(prompts: Sequence[Any], answers: Sequence[Any]) -> Tensor:
        tokens = [renderer.prompt_and_response(p["prompt"], a) for p, a in zip(prompts, answers, strict=True)]
        return torch.stack([response_logp(policy, row) - response_logp(reference, row) for row in tokens])

    chosen, rejected = ([row[name] for row in rows] for name in ("chosen", "rejected"))
    shifted = [*rows[1:], rows[0]]
    z0 = torch.cat([log_ratios(shifted, chosen), log_ratios(shifted, rejected)]).mean().clamp(min=0)
    gains = 2.0 * (1 - torch.sigmoid(0.3 * (log_ratios(rows, chosen) - z0)))
    losses = 0.1 * (1 - torch.sigmoid(0.3 * (z0 - log_ratios(rows, rejected))))
    assert z0 > 0.1
    assert summary(run)["eval_kl"] == pytest.approx(z0.item(), abs=1e-4)
    assert summary(run)["eval_loss"] == pytest.approx(torch.cat([gains, losses]).mean().item(), abs=1e-5)
    rewards = (0.3 * log_ratios(rows, chosen).mean().item(), 0.3 * log_ratios(rows, rejected).mean().item())
    assert [summary(run)[f"eval_rewards/{name}"] for name in ("chosen", "rejected")] == pytest.approx(rewards, abs=1e-4)
    assert summary(run)["eval_margin"] == pytest.approx(rewards[0] - rewards[1], abs=1e-4)


def answer_row(number: int) -> dict[str, Any]:
    """One judged answer: good and bad ones in turns of two and one."""
    row = preference_row(number)
    side = "rejected" if number % 3 == 2 else "chosen"
    return {"id": f"answer{number}", "prompt": row["prompt"], "response": row[side], "desirable": side == "chosen"}


def with_answers(folder: Path, pairs: int) -> Path:
    """Seven single answers to train on and five to measure, beside as many pairs as are asked for (0: none)."""
    if pairs:
        write_data(folder, pairs, 3)
    for split, first, n_rows in (("train", 0, 7), ("validation", 1003, 5)):
        rows = map(answer_row, range(first, first + n_rows))
        write_table("unpaired", to_table("unpaired", rows), folder / "unpaired" / f"{split}.parquet")
    return folder


@pytest.mark.parametrize("pairs", [0, 4], ids=["alone", "beside pairs"])
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_single_answers_are_trained_on_by_the_definition(packing: bool, pairs: int, models: Models, tmp_path: Path) -> None:
    data = with_answers(tmp_path / "data", pairs)
    run = trained(models, data, tmp_path, lora=FULL, batch_size=8, max_steps=3, engine=engine(packing=packing), **RISING)
    policy, reference = policy_after(run), AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32).eval()
    renderer = Renderer(load_tokenizer(run.model))
    # Prompt, answers and which of them are good, in the order of the validation split.
    judged = [
        (r["prompt"], [r["chosen"], r["rejected"]], [True, False])
        for r in map(preference_row, range(1000, 1003 if pairs else 1000))
    ]
    judged += [(r["prompt"], [r["response"]], [r["desirable"]]) for r in map(answer_row, range(1003, 1008))]

    def log_ratio(prompt: Any, answer: Any) -> Tensor:
        row = renderer.prompt_and_response(prompt, answer)
        return response_logp(policy, row) - response_logp(reference, row)

    following = [*judged[1:], judged[0]]
    others = [
        log_ratio(taker, answer) for (_, answers, _), (taker, *_) in zip(judged, following, strict=True) for answer in answers
    ]
    z0 = torch.stack(others).mean().clamp(min=0)
    own = [(log_ratio(prompt, a), good) for prompt, answers, goods in judged for a, good in zip(answers, goods, strict=True)]
    losses = [
        2.0 * (1 - torch.sigmoid(0.3 * (ratio - z0))) if good else 0.1 * (1 - torch.sigmoid(0.3 * (z0 - ratio)))
        for ratio, good in own
    ]
    assert z0 > 0.1
    assert summary(run)["train_rows"] == 7 + pairs
    assert summary(run)["validation_rows"] == len(judged)
    assert summary(run)["eval_kl"] == pytest.approx(z0.item(), abs=1e-4)
    assert summary(run)["eval_loss"] == pytest.approx(torch.stack(losses).mean().item(), abs=1e-5)
    for name, side in (("chosen", True), ("rejected", False)):
        mean = 0.3 * torch.stack([ratio for ratio, good in own if good == side]).mean().item()
        assert summary(run)[f"eval_rewards/{name}"] == pytest.approx(mean, abs=1e-4)
    right = sum((ratio > z0).item() == good for ratio, good in own)
    assert summary(run)["eval_accuracy"] == pytest.approx(right / len(own))


def test_other_methods_do_not_read_single_answers(models: Models, tmp_path: Path) -> None:
    run = trained(models, with_answers(tmp_path / "data", 4), tmp_path, method="dpo", max_steps=1)
    assert summary(run)["train_rows"] == 4


def test_without_pairs_and_answers_the_table_is_named(models: Models, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="preference"):
        trained(models, tmp_path / "nothing", tmp_path, method="kto")


@pytest.mark.parametrize("good", [True, False])
def test_answers_of_one_kind_alone_are_refused(good: bool, models: Models, tmp_path: Path) -> None:
    data = tmp_path / "data"
    rows = [{**answer_row(n), "desirable": good} for n in range(6)]
    write_table("unpaired", to_table("unpaired", rows), data / "unpaired" / "train.parquet")
    with pytest.raises(
        DataError, match=rf"all 6 answers are {'' if good else 'un'}desirable, .*add {'un' if good else ''}desirable"
    ):
        trained(models, data, tmp_path, method="kto")
    # Pairs have both kinds.
    write_data(data)
    trained(models, data, tmp_path / "with_pairs", method="kto", max_steps=1)


def test_the_cut_into_micro_batches_changes_nothing(models: Models, data: Path, tmp_path: Path) -> None:
    whole, cut = (
        trained(models, data, tmp_path / str(n), batch_size=8, optimizer=SMOOTH, engine=engine(micro_batch_tokens=n), **RISING)
        for n in (4096, 16)
    )
    assert max(curve(whole, "kl")) > 0.1
    for name, tolerance in (("kl", 2e-5), ("loss", 2e-6), ("eval_loss", 2e-6)):
        assert curve(whole, name) == pytest.approx(curve(cut, name), abs=tolerance)
    assert curve(whole, "grad_norm") == pytest.approx(curve(cut, "grad_norm"), rel=1e-4)
    other = weights(cut)
    assert all(torch.allclose(value, other[name], atol=2e-6) for name, value in weights(whole).items())


def test_before_the_first_update_nothing_has_moved_from_the_reference(models: Models, data: Path, tmp_path: Path) -> None:
    kto, dpo = (trained(models, data, tmp_path / name, method=name, batch_size=10, max_steps=1) for name in ("kto", "dpo"))
    assert curve(kto, "kl")[0] == pytest.approx(0.0, abs=1e-5)
    assert curve(kto, "loss")[0] == pytest.approx(0.5, abs=1e-5)
    # A sigmoid is half as steep there as DPO's log-sigmoid, and each response counts for half a pair.
    assert curve(kto, "grad_norm")[0] == pytest.approx(curve(dpo, "grad_norm")[0] / 4, rel=1e-4)


def test_each_weight_scales_the_losses_of_its_side(models: Models, data: Path, tmp_path: Path) -> None:
    loss = {}
    for desirable, undesirable in ((1.0, 1.0), (3.0, 1.0), (1.0, 3.0)):
        weighing = {"kto": {"desirable_weight": desirable, "undesirable_weight": undesirable}}
        run = trained(models, data, tmp_path / f"{weighing}", method="kto", batch_size=10, max_steps=2, **weighing)
        loss[desirable, undesirable] = curve(run, "loss")
        assert curve(run, "loss")[0] == pytest.approx((desirable + undesirable) / 4, abs=1e-5)
    assert loss[3.0, 1.0][1] != pytest.approx(loss[1.0, 3.0][1], abs=1e-3)


def test_answers_go_behind_the_next_prompt_of_the_batch() -> None:
    a, b, c = (example(name, prompt, 2) for name, prompt in (("a", [1]), ("b", [2, 2]), ("c", [3, 3, 3])))
    first, second, third = mismatched([a, b, c], max_length_tokens=5)
    assert [row.ids for row in first.rows] == [[1, 30, 30], [1, 31, 31]]
    assert [row.ids for row in second.rows] == [[2, 2, 10, 10], [2, 2, 11, 11]]
    assert third.rows[1] == TokenRow.from_prompt_response([3, 3, 3], [21, 21])
    assert mismatched([a], max_length_tokens=5) == []


def test_pairs_that_became_too_long_are_left_out() -> None:
    examples = [example("a", [1], 4), example("b", [2, 2, 2], 2), example("c", [3], 2)]
    assert [[len(row) for row in pair.rows] for pair in mismatched(examples, max_length_tokens=5)] == [[3, 3], [3, 3]]


def example(name: str, prompt: list[int], length: int) -> Example:
    """Answers are made of tens of the prompt's token, and of the number after it."""
    rows = (TokenRow.from_prompt_response(prompt, [10 * prompt[0] + i] * length) for i in range(2))
    return Example(name, tuple(rows))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "kto", "kto": {"desirable_weight": 0.0}}, "desirable_weight"),
        ({"method": "kto", "kto": {"undesirable_weight": -1.0}}, "undesirable_weight"),
        ({"method": "kto", "batch_size": 1}, r"batch_size=1.*at least 2"),
        ({"method": "cdpo", "label_smoothing": 0.0}, r"label_smoothing=0 with method 'cdpo'.*0.1 is taken"),
    ],
)
def test_settings_that_cannot_apply_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        preference_config(**settings)
