"""Process reward models: a score at the end of each step, against its definition and under every layout."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from data_processing.errors import DataError
from data_processing.schemas import to_table, write_table
from rlhf_core.batching.templates import Renderer
from rlhf_core.engine.convert import convert_checkpoint
from rlhf_core.models.load import load_tokenizer
from rlhf_core.objectives.reward import step_reward_loss
from rlhf_core.recipes.examples import digest, steps
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.recipes.reward_model import train_reward_model
from rlhf_core.settings.models import ConvertConfig
from rlhf_core.settings.training import OptimizerSettings
from tests.recipes.gradients import gradients_of
from tests.recipes.small_jobs import FULL, curve, engine, job, reward_config, same_weights, step_row, summary
from tests.recipes.test_resume_is_exact import crash
from tests.tiny_models import ARCHITECTURES, CHATML, GEMMA_TURNS, Architecture, tiny_tokenizer

Models = dict[Architecture, Path]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    for split, first, last in (("train", 0, 10), ("validation", 100, 106)):
        write_table("stepwise", to_table("stepwise", map(step_row, range(first, last))), folder / "stepwise" / f"{split}.parquet")
    return folder


def prm(model: Path, data: Path, work: Path, **changes: Any) -> TrainingJob[Any]:
    return job(reward_config(granularity="step", **changes), model, data, work)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("separator", ["\n\n", "\n", " "])
def test_steps_end_where_they_are_separated_and_the_last_with_its_turn(arch: Architecture, separator: str) -> None:
    renderer = Renderer(tiny_tokenizer(arch))
    row = step_row(3)
    [tokens] = steps(renderer, row, separator).rows
    contents = [step["content"] for step in row["steps"]]
    whole = renderer.prompt_and_response(row["prompt"], [{"role": "assistant", "content": separator.join(contents)}])
    assert tokens.ids == whole.ids, "an answer has the tokens that it has anywhere"
    ends = [i for i, is_end in enumerate(tokens.is_target) if is_end]
    assert len(ends) == len(contents) == 4
    assert ends[-1] == len(tokens) - 1
    start = whole.prompt_length
    for end, step in zip(ends[:-1], contents, strict=False):
        # A space is a token with the word that follows.
        assert renderer.tokenizer.decode(tokens.ids[start : end + 1]).strip() == step
        assert separator == " " or renderer.tokenizer.decode(tokens.ids[start : end + 1]).endswith(separator)
        start = end + 1


def test_a_step_that_stands_in_the_one_before_is_found_behind_it() -> None:
    renderer = Renderer(tiny_tokenizer("llama"))
    row = {**step_row(1), "steps": [{"role": "assistant", "content": text} for text in ("no no", "no")], "labels": [True, False]}
    [tokens] = steps(renderer, row).rows
    first = tokens.is_target.index(True)
    assert renderer.tokenizer.decode(tokens.ids[: first + 1]).endswith("no no\n\n")


def test_steps_within_a_token_are_refused() -> None:
    renderer = Renderer(tiny_tokenizer("llama"))
    with pytest.raises(DataError, match="two of its steps end in one token"):
        renderer.steps(step_row(1)["prompt"], list("answer"), "")


@pytest.mark.parametrize("template", [CHATML.replace("message['content'] +", "message['content'] | trim +"), GEMMA_TURNS])
def test_a_template_that_trims_changes_no_step(template: str) -> None:
    arch: Architecture = "gemma" if template is GEMMA_TURNS else "llama"
    renderer = Renderer(tiny_tokenizer(arch), template)
    row = {
        **step_row(1),
        "steps": [{"role": "assistant", "content": text} for text in (" yes ", "no \n")],
        "labels": [True, False],
    }
    assert steps(renderer, row).rows[0].n_targets == 2


def test_a_template_that_leaves_steps_out_is_refused() -> None:
    renderer = Renderer(tiny_tokenizer("llama"), CHATML.replace("message['content'] +", "message['content'].split('\n')[0] +"))
    with pytest.raises(DataError, match="leaves out"):
        steps(renderer, step_row(3))


def test_the_loss_is_the_cross_entropy_at_step_ends_and_the_artifact_has_its_scores(
    models: Models, judged: Path, tmp_path: Path
) -> None:
    run = prm(models["llama"], judged, tmp_path, batch_size=10, max_steps=3, learning_rate=3e-3)
    train_reward_model(run)
    assert curve(run, "loss")[0] == pytest.approx(0.693147, abs=1e-5)
    convert_checkpoint(run.output, models["llama"], tmp_path / "model", ConvertConfig(dtype="fp32"), lineage={})
    scorer: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    renderer = Renderer(load_tokenizer(tmp_path / "model"))
    scores, labels = [], []
    for example in (steps(renderer, step_row(number)) for number in range(100, 106)):
        [row] = example.rows
        hidden = scorer.base_model(torch.tensor([row.ids])).last_hidden_state[0]
        ends = torch.tensor(row.is_target)
        scores.append(scorer.score(hidden)[ends, 0])
        labels += example.labels
        assert scorer(torch.tensor([row.ids]), use_cache=False).logits.item() == pytest.approx(scores[-1][-1].item(), abs=1e-5)
    scores_N, labels_N = torch.cat(scores), torch.tensor(labels)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(scores_N, labels_N.float())
    assert summary(run)["eval_loss"] == pytest.approx(expected.item(), abs=1e-5)
    assert summary(run)["eval_accuracy"] == pytest.approx(((scores_N > 0) == labels_N).float().mean().item())
    assert summary(run)["score_mean"] == pytest.approx(scores_N.mean().item(), abs=1e-5)


def test_it_learns_which_steps_are_right(models: Models, judged: Path, tmp_path: Path) -> None:
    run = prm(models["llama"], judged, tmp_path, batch_size=10, max_steps=12, learning_rate=2e-2)
    train_reward_model(run)
    assert curve(run, "loss")[-1] < curve(run, "loss")[0] - 0.1
    assert curve(run, "accuracy")[-1] > curve(run, "right")[0]


@pytest.mark.parametrize("arch", ["llama", "gemma"])
def test_no_layout_changes_the_gradient(arch: Architecture, models: Models, judged: Path, tmp_path: Path) -> None:
    smooth = OptimizerSettings(learning_rate=0.002, schedule="constant", warmup_fraction=0.0, epsilon=1.0)
    layouts = {"whole": {"micro_batch_tokens": 4096}, "cut": {"micro_batch_tokens": 16}, "padded": {"packing": "off"}}
    runs = {}
    for name, layout in layouts.items():
        changes = {"lora": FULL, "max_steps": 2, "batch_size": 7, "optimizer": smooth, "engine": engine(**layout)}
        runs[name] = partial(train_reward_model, prm(models[arch], judged, tmp_path / name, **changes))
    found = gradients_of(runs)
    for name in ("cut", "padded"):
        for one, other in zip(found["whole"], found[name], strict=True):
            assert (other - one).norm() <= 2e-6 * one.norm()


def test_answers_to_one_prompt_are_read_at_their_own_steps(models: Models, tmp_path: Path) -> None:
    """In a packed line they have the prompt, and what they begin with, once."""
    said = [["yes"], ["yes", "no"], ["yes", "approve"], ["yes"]]
    rows = [
        {
            **step_row(0),
            "id": str(n),
            "labels": [n % 2 == 0] * len(texts),
            "steps": [{"role": "assistant", "content": t} for t in texts],
        }
        for n, texts in enumerate(said)
    ]
    write_table("stepwise", to_table("stepwise", rows), tmp_path / "stepwise" / "train.parquet")
    losses = []
    for name, layout in {"shared": {}, "padded": {"packing": "off"}}.items():
        run = prm(models["llama"], tmp_path, tmp_path / name, step_separator="\n", max_steps=3, engine=engine(**layout))
        train_reward_model(run)
        losses.append(curve(run, "loss"))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_crashed_run_ends_with_the_same_weights(models: Models, judged: Path, tmp_path: Path) -> None:
    changes = {"checkpoint_every_steps": 2, "max_steps": 5}
    whole, resumed = (prm(models["llama"], judged, tmp_path / name, **changes) for name in ("whole", "resumed"))
    train_reward_model(whole)
    crash(train_reward_model, resumed, at=4)
    train_reward_model(resumed)
    assert same_weights(whole, resumed)


def test_the_digest_changes_with_labels() -> None:
    renderer, row = Renderer(tiny_tokenizer("llama")), step_row(3)
    other = {**row, "labels": [not row["labels"][0], *row["labels"][1:]]}
    assert digest([steps(renderer, row)]) != digest([steps(renderer, other)])


def test_without_the_table_the_settings_that_make_it_are_named(models: Models, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no stepwise/train.parquet.*sources in data\.stepwise"):
        train_reward_model(prm(models["llama"], data, tmp_path))


def test_the_loss_of_steps_is_finite_for_any_scores() -> None:
    scores = torch.tensor([1e30, -1e30, 0.0, 2.0], requires_grad=True)
    losses = step_reward_loss(scores, torch.tensor([True, True, False, False]))
    losses.sum().backward()
    torch.testing.assert_close(losses.detach(), torch.tensor([0.0, 1e30, 0.6931472, 2.1269281]))
    assert scores.grad is not None and scores.grad.isfinite().all()
