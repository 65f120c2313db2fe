"""The policy's loss on a tiny model: what is on policy, what has no gradient, what a correction changes."""

from typing import Any

import pytest
import torch

from rlhf_core.batching.collate import collate, target_mask
from rlhf_core.batching.rows import TokenRow
from rlhf_core.cluster.actors import MiniBatch
from rlhf_core.models.load import load_lm
from rlhf_core.models.modules import PolicyModule
from rlhf_core.recipes.online.losses import PolicyObjective
from rlhf_core.recipes.online.rollouts import mini_batches
from rlhf_core.settings.online import OnlineConfig
from tests.tiny_models import tiny_model

ROWS = [TokenRow.from_prompt_response([5, 6, 7], response) for response in ([8, 9, 10, 11], [12, 13], [14, 15, 16], [17, 18, 19])]
ADVANTAGES = torch.tensor([1.0, -0.5, 0.0, 0.0])


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> PolicyModule:
    return PolicyModule(load_lm(tiny_model(tmp_path_factory.mktemp("model")), dtype="fp32", attention="sdpa"))


def loss_of(
    module: PolicyModule, batch: MiniBatch, fields: dict[str, torch.Tensor] | None = None, **settings: Any
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Shares, log-probs and the gradient, all parameters in one vector; `fields` are [4, 4] beside the advantages."""
    config = OnlineConfig.model_validate({"method": "grpo", "kl_coef": 0.0, **settings})
    rows = batch.rows
    model_batch = collate([ROWS[i] for i in rows], pad_id=0, packed=True)
    whole = {"advantages": ADVANTAGES[:, None].expand(4, 4), **(fields or {})}
    cut = {name: field[rows, : model_batch.width] for name, field in whole.items()}
    module.zero_grad()
    shares, outputs = PolicyObjective(config, config.value("kl_coef"))(module, model_batch, cut, batch.totals)
    shares["loss"].backward()
    return shares, outputs["logprobs"].detach(), torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def whole() -> MiniBatch:
    [batch] = mini_batches([[0, 1, 2, 3]], ROWS)
    return batch


def test_without_old_logprobs_the_pass_is_its_own_scoring_pass(module: PolicyModule) -> None:
    shares, logprobs, gradient = loss_of(module, whole())
    given, _, same = loss_of(module, whole(), {"old_logprobs": logprobs})
    assert float(shares["approx_kl"]) == 0.0
    assert float(shares["ratio_mean"]) == pytest.approx(1.0, abs=1e-6)
    assert given["loss"].equal(shares["loss"])
    torch.testing.assert_close(same, gradient, rtol=0, atol=0)
    assert gradient.any()


def test_rows_without_an_advantage_are_left_out_and_the_gradient_stays(module: PolicyModule) -> None:
    has_gradient = (ADVANTAGES != 0).tolist()
    [kept] = mini_batches([[0, 1, 2, 3]], ROWS, has_gradient)
    assert kept.rows == [0, 1]
    assert (kept.totals.tokens, kept.totals.sequences) == (whole().totals.tokens, whole().totals.sequences)
    torch.testing.assert_close(loss_of(module, kept)[2], loss_of(module, whole())[2], rtol=0, atol=1e-7)
    # What is reported is a mean over the rows that were computed.
    assert float(loss_of(module, kept)[0]["ratio_mean"]) == pytest.approx(1.0, abs=1e-6)
    # A mini-batch that teaches nothing is no optimizer step.
    assert [batch.rows for batch in mini_batches([[0, 2], [2, 3]], ROWS, has_gradient)] == [[0]]


@pytest.mark.parametrize(
    ("settings", "every_row"),
    [({}, False), ({"kl_coef": 0.1}, True), ({"entropy_coef": 0.1}, True), ({"method": "ppo", "kl_coef": 0.1}, False)],
)
def test_a_kl_or_an_entropy_in_the_loss_keeps_every_row(settings: dict[str, Any], every_row: bool) -> None:
    config = OnlineConfig.model_validate({"method": "grpo", "kl_coef": 0.0, **settings})
    assert config.every_row_has_a_gradient is every_row


@pytest.mark.parametrize("kind", ["truncate", "mask", "sequence_mask"])
def test_a_correction_weighs_the_loss_by_how_stale_its_sampler_is(module: PolicyModule, kind: str) -> None:
    plain, logprobs, gradient = loss_of(module, whole())
    stale = logprobs.clone()
    stale[0] -= 2.0
    settings = {"rollout_correction": kind, "correction_low": 0.5, "correction_high": 3.0}
    fresh, _, same = loss_of(module, whole(), {"sampler_logprobs": logprobs}, **settings)
    torch.testing.assert_close(same, gradient, rtol=0, atol=1e-7)
    assert float(fresh["correction_clipped"]) == 0.0
    corrected, _, changed = loss_of(module, whole(), {"sampler_logprobs": stale}, **settings)
    n_tokens, n_stale = whole().totals.tokens, 4
    # exp(2) is out of bounds: truncated to 3, or the tokens count for nothing.
    weight = 3.0 if kind == "truncate" else 0.0
    assert float(corrected["correction_clipped"]) == pytest.approx(n_stale / n_tokens)
    assert float(corrected["correction_weight"]) == pytest.approx((n_tokens - n_stale + n_stale * weight) / n_tokens)
    # On policy each token's loss is minus its advantage: row 0 has the mean 1, weighed, over four rows.
    assert float((corrected["loss"] - plain["loss"]).detach()) == pytest.approx((1.0 - weight) / 4, abs=1e-6)
    assert not torch.allclose(changed, gradient)


def test_the_default_correction_is_truncation_where_rounds_overlap() -> None:
    assert OnlineConfig().correction is None
    assert OnlineConfig(async_steps=1).correction == "truncate"
    assert OnlineConfig.model_validate({"async_steps": 1, "rollout_correction": "none"}).correction is None
    assert OnlineConfig.model_validate({"rollout_correction": "mask"}).correction == "mask"


def test_the_mask_of_targets_is_what_the_loss_sees(module: PolicyModule) -> None:
    batch = collate(ROWS, pad_id=0, packed=True)
    _, logprobs, _ = loss_of(module, whole())
    assert not logprobs[~target_mask(batch)].any()
