"""SFT, reward model and preference training on tiny models: they learn, and only what the settings say changes the result."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from data_processing.errors import ConfigError, DivergedError
from rlhf_core.batching.templates import Renderer
from rlhf_core.engine.checkpoint import latest_checkpoint
from rlhf_core.engine.convert import convert_checkpoint
from rlhf_core.methods.preference import PREFERENCE
from rlhf_core.models.load import load_tokenizer
from rlhf_core.recipes.examples import Example
from rlhf_core.recipes.loop import BAD_BATCH_NAME
from rlhf_core.recipes.preference import train_preference
from rlhf_core.recipes.reward_model import train_reward_model
from rlhf_core.recipes.row_order import RowOrder
from rlhf_core.recipes.sft import train_sft
from rlhf_core.settings.models import ConvertConfig
from rlhf_core.settings.training import OptimizerSettings, OrderSettings
from tests.recipes.small_jobs import (
    FULL,
    curve,
    engine,
    events,
    job,
    preference_config,
    preference_row,
    reward_config,
    sft_config,
    sft_row,
    summary,
    weights,
    write_data,
)
from tests.tiny_models import ARCHITECTURES, Architecture, alibi_model, tiny_model

pytestmark = pytest.mark.seconds

Models = dict[Architecture, Path]

RECIPES: dict[str, tuple[Any, Any]] = {
    "sft": (train_sft, sft_config),
    "reward_model": (train_reward_model, reward_config),
    "preference": (train_preference, preference_config),
}
every_recipe = pytest.mark.parametrize("recipe", RECIPES)
# A large epsilon keeps AdamW from blowing up the last bits of near-zero gradients.
SMOOTH = OptimizerSettings(learning_rate=1e-2, schedule="constant", warmup_fraction=0.0, epsilon=1e-3)


def trained(recipe: str, model: Path, data: Path, work: Path, **changes: Any) -> Any:
    train, config = RECIPES[recipe]
    run = job(config(**changes), model, data, work)
    train(run)
    return run


@every_recipe
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_loss_falls_on_rows_seen_again(recipe: str, arch: Architecture, models: Models, data: Path, tmp_path: Path) -> None:
    run = trained(recipe, models[arch], data, tmp_path, batch_size=10, max_steps=8)
    losses = curve(run, "loss")
    assert losses[-1] < losses[0] - 0.05
    assert all(b < a for a, b in zip(losses[::3], losses[3::3], strict=False))


@every_recipe
def test_full_training_learns_too(recipe: str, models: Models, data: Path, tmp_path: Path) -> None:
    run = trained(recipe, models["llama"], data, tmp_path, learning_rate=3e-3, batch_size=10, max_steps=8, lora=FULL)
    assert curve(run, "loss")[-1] < curve(run, "loss")[0] - 0.05
    assert not any("lora" in name for name in weights(run))


@every_recipe
def test_bf16_with_adapters_learns_too(recipe: str, models: Models, data: Path, tmp_path: Path) -> None:
    run = trained(recipe, models["llama"], data, tmp_path, batch_size=10, max_steps=8, engine=engine(dtype="bf16"))
    assert curve(run, "loss")[-1] < curve(run, "loss")[0] - 0.05


@every_recipe
def test_learning_rate_zero_changes_nothing(recipe: str, models: Models, data: Path, tmp_path: Path) -> None:
    run = trained(recipe, models["llama"], data, tmp_path, learning_rate=0.0, batch_size=10, max_steps=3, lora=FULL)
    assert len(set(curve(run, "loss"))) == 1 or max(curve(run, "loss")) - min(curve(run, "loss")) < 1e-6
    before = AutoModelForCausalLM.from_pretrained(models["llama"], dtype=torch.float32).state_dict()
    after = {name.removeprefix("hf."): value for name, value in weights(run).items()}
    shared = before.keys() & after.keys()
    assert len(shared) > 15
    assert all(torch.equal(before[name], after[name]) for name in shared)


@every_recipe
def test_the_cut_into_micro_batches_changes_nothing(recipe: str, models: Models, data: Path, tmp_path: Path) -> None:
    whole, cut = (
        trained(
            recipe,
            models["llama"],
            data,
            tmp_path / str(tokens),
            batch_size=8,
            optimizer=SMOOTH,
            engine=engine(micro_batch_tokens=tokens),
        )
        for tokens in (4096, 16)
    )
    assert curve(whole, "loss") == pytest.approx(curve(cut, "loss"), abs=2e-6)
    assert curve(whole, "grad_norm") == pytest.approx(curve(cut, "grad_norm"), rel=1e-4)
    assert curve(whole, "eval_loss") == pytest.approx(curve(cut, "eval_loss"), abs=2e-6)
    other = weights(cut)
    assert all(torch.allclose(value, other[name], atol=2e-6) for name, value in weights(whole).items())


@every_recipe
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_packing_changes_nothing(recipe: str, arch: Architecture, models: Models, data: Path, tmp_path: Path) -> None:
    packed, padded = (
        trained(recipe, models[arch], data, tmp_path / str(on), optimizer=SMOOTH, max_steps=3, engine=engine(packing=on))
        for on in (True, False)
    )
    assert curve(packed, "loss") == pytest.approx(curve(padded, "loss"), abs=1e-5)


@every_recipe
def test_a_model_that_packing_would_mix_up_is_padded_and_one_line_says_so(recipe: str, data: Path, tmp_path: Path) -> None:
    model = alibi_model(tmp_path)
    auto, off, alone = (
        trained(recipe, model, data, tmp_path / name, optimizer=SMOOTH, max_steps=3, engine=engine(**settings))
        for name, settings in {"auto": {}, "off": {"packing": "off"}, "alone": {"micro_batch_tokens": 16}}.items()
    )
    assert curve(auto, "loss") == curve(off, "loss") == pytest.approx(curve(alone, "loss"), abs=1e-5)
    assert curve(auto, "eval_loss") == curve(off, "eval_loss") == pytest.approx(curve(alone, "eval_loss"), abs=1e-5)
    [warning] = events(auto, "warning")
    assert re.search(
        r"'falcon' .*rows in a packed line are not.*differ by up to [\d.]+ nats; batches are padded", warning["message"]
    )
    assert not events(off, "warning")
    with pytest.raises(ConfigError, match=r"engine\.packing is 'on'"):
        trained(recipe, model, data, tmp_path / "on", engine=engine(packing="on"))


def test_every_step_reports_what_a_user_watches(models: Models, data: Path, tmp_path: Path) -> None:
    run = trained("preference", models["llama"], data, tmp_path, eval_every_steps=2, max_steps=5)
    steps = [event for event in events(run, "metrics") if "loss" in event["values"]]
    assert [event["step"] for event in steps] == [1, 2, 3, 4, 5]
    common = {
        "loss",
        "grad_norm",
        "learning_rate",
        "tokens",
        "seen_tokens",
        "tokens_per_s",
        "seconds",
        "epoch",
        "memory_mib",
        "cpu_seconds",
    }
    own = {"rewards/chosen", "rewards/rejected", "margin", "accuracy", "nll", "log_ratio_per_token"}
    assert all(common | own == set(event["values"]) for event in steps)
    assert [event["step"] for event in events(run, "metrics") if "eval_loss" in event["values"]] == [2, 4, 5]
    assert events(run, "progress")[-1]["done"] == events(run, "progress")[-1]["total"] == 5
    assert summary(run)["train_rows"] == 10


def test_the_sft_loss_is_the_mean_over_all_assistant_tokens(models: Models, data: Path, tmp_path: Path) -> None:
    run = trained("sft", models["llama"], data, tmp_path, batch_size=10, max_steps=1)
    renderer = Renderer(load_tokenizer(models["llama"]))
    model = AutoModelForCausalLM.from_pretrained(models["llama"], dtype=torch.float32).eval()
    total, targets = 0.0, 0
    for row in (renderer.conversation(sft_row(number)["messages"]) for number in range(10)):
        labels = torch.tensor([[i if target else -100 for i, target in zip(row.ids, row.is_target, strict=True)]])
        total += model(torch.tensor([row.ids]), labels=labels).loss.item() * row.n_targets
        targets += row.n_targets
    assert curve(run, "loss")[0] == pytest.approx(total / targets, abs=1e-5)


def test_each_preference_method_takes_its_own_path(models: Models, data: Path, tmp_path: Path) -> None:
    paths = {}
    for method in PREFERENCE:
        run = trained("preference", models["llama"], data, tmp_path / method, method=method)
        paths[method] = torch.cat([value.flatten() for value in weights(run).values()])
    for one, other in combinations(PREFERENCE, 2):
        assert not torch.allclose(paths[one], paths[other], atol=1e-4), f"{one} and {other} end in the same weights"


@pytest.mark.parametrize("change", [{"beta": 0.5}, {"nll_coef": 1.0}])
def test_preference_coefficients_change_the_path(change: dict[str, float], models: Models, data: Path, tmp_path: Path) -> None:
    plain, changed = (trained("preference", models["llama"], data, tmp_path / str(len(c)), **c) for c in ({}, change))
    assert curve(plain, "margin")[-1] / 0.1 != pytest.approx(curve(changed, "margin")[-1] / change.get("beta", 0.1), rel=1e-2)


def test_before_the_first_update_the_policy_is_the_reference(models: Models, data: Path, tmp_path: Path) -> None:
    run = trained("preference", models["gemma"], data, tmp_path, max_steps=1)
    assert curve(run, "loss")[0] == pytest.approx(0.693147, abs=1e-5)
    assert curve(run, "log_ratio_per_token")[0] == pytest.approx(0.0, abs=1e-5)


def test_the_centre_penalty_is_the_squared_sum_of_scores(models: Models, data: Path, tmp_path: Path) -> None:
    # The new head is zero, so the first step is the same for both; the second starts from the same weights.
    free, centred = (
        trained("reward_model", models["qwen3"], data, tmp_path / str(coef), center_coef=coef, batch_size=1, max_steps=3)
        for coef in (0.0, 1.0)
    )
    first, second, _ = (b - a for a, b in zip(curve(free, "loss"), curve(centred, "loss"), strict=True))
    assert first == 0.0
    assert second == pytest.approx((2 * curve(free, "score_mean")[1]) ** 2, rel=1e-4)
    assert second > 1e-4
    assert curve(free, "score_mean")[2] != curve(centred, "score_mean")[2]


def test_the_summary_has_what_normalises_rewards(models: Models, data: Path, tmp_path: Path) -> None:
    facts = summary(trained("reward_model", models["llama"], data, tmp_path))
    assert facts["score_std"] > 0
    assert facts["score_mean"] ** 2 + facts["score_std"] ** 2 == pytest.approx(facts["eval_score_square"])


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen3", "gemma"])
def test_the_converted_reward_model_gives_the_scores_of_training(
    arch: Architecture, models: Models, data: Path, tmp_path: Path
) -> None:
    run = trained("reward_model", models[arch], data, tmp_path)
    convert_checkpoint(run.output, models[arch], tmp_path / "model", ConvertConfig(dtype="fp32"), lineage={})
    scorer = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    renderer = Renderer(load_tokenizer(tmp_path / "model"))
    scores = []
    for row in map(preference_row, range(1000, 1005)):
        for answer in (row["chosen"], row["rejected"]):
            ids = renderer.prompt_and_response(row["prompt"], answer).ids
            scores.append(scorer(torch.tensor([ids]), use_cache=False).logits.item())
    assert sum(scores) / len(scores) == pytest.approx(summary(run)["score_mean"], abs=1e-5)
    assert torch.tensor(scores).std(correction=0).item() == pytest.approx(summary(run)["score_std"], abs=1e-5)


def test_margins_of_the_table_enter_the_reward_loss(models: Models, data: Path, tmp_path: Path) -> None:
    run = trained("reward_model", models["llama"], data, tmp_path, batch_size=10, max_steps=1)
    # The head starts at zero, so every pair costs softplus(margin): four of ten pairs have a margin of 0.5.
    expected = (4 * torch.nn.functional.softplus(torch.tensor(0.5)).item() + 6 * 0.693147) / 10
    assert curve(run, "loss")[0] == pytest.approx(expected, abs=1e-5)


def test_a_batch_with_nan_stops_the_run_and_is_kept(data: Path, tmp_path: Path) -> None:
    model = _poisoned(tiny_model(tmp_path, "qwen3"), token="@")
    write_data(tmp_path / "data")
    batch = RowOrder(OrderSettings(), [Example(str(i), ()) for i in range(10)], 3, 24).epoch(0)[8:]
    poisoned = batch[1]
    _replace_answer(tmp_path / "data", poisoned, "write to me @ home")
    run = job(sft_config(checkpoint_every_steps=1), model, tmp_path / "data", tmp_path / "run")
    with pytest.raises(DivergedError, match="step 3 is nan"):
        train_sft(run)
    kept = json.loads((run.resume / BAD_BATCH_NAME).read_text())
    assert kept["step"] == 3
    assert [example["id"] for example in kept["examples"]] == [f"row{i}" for i in batch]
    assert all(len(row["ids"]) == len(row["is_target"]) for example in kept["examples"] for row in example["rows"])
    assert latest_checkpoint(run.resume) == run.resume / "step_00000002"
    assert not any(run.output.iterdir())


def _poisoned(model: Path, token: str) -> Path:
    """The model with NaN in the embedding of one token that only one row has; it has an untied head."""
    file = model / "model.safetensors"
    state = load_file(file)
    state["model.embed_tokens.weight"][load_tokenizer(model).convert_tokens_to_ids(token)] = float("nan")
    save_file(state, file, metadata={"format": "pt"})
    return model


def _replace_answer(data: Path, number: int, answer: str) -> None:
    from data_processing.schemas import to_table, write_table

    rows = [sft_row(i) for i in range(10)]
    rows[number]["messages"][-1]["content"] = answer
    write_table("sft", to_table("sft", rows), data / "sft" / "train.parquet")


@every_recipe
def test_rows_longer_than_the_model_are_refused_before_any_work(recipe: str, models: Models, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_length_tokens=300 .* 256 positions"):
        trained(recipe, models["gpt2"], data, tmp_path, max_length_tokens=300)
    assert not (tmp_path / "events.jsonl").exists()


@every_recipe
def test_a_run_without_validation_rows_says_so(recipe: str, models: Models, tmp_path: Path) -> None:
    run = trained(recipe, models["llama"], write_data(tmp_path, validation_rows=0), tmp_path, max_steps=1)
    assert any("validation" in event["message"] for event in events(run, "warning"))
    assert not any(name.startswith("eval") for name in summary(run))


@pytest.mark.parametrize(
    ("train", "config"),
    [(train_sft, sft_config), (train_reward_model, reward_config), (train_preference, preference_config)],
)
def test_nothing_is_trained_that_could_not_be_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Any, config: Any
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no such tensor")

    monkeypatch.setattr("rlhf_core.engine.convert.publish", full)
    run = job(config(), tiny_model(tmp_path), write_data(tmp_path / "data"), tmp_path)
    with pytest.raises(ConfigError, match="not converted afterwards: no such tensor"):
        train(run)
    assert not run.events.path.exists() or not events(run, "metrics")
