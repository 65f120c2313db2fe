"""Packed lines cost what their sequences cost, at every layer of every architecture, and memory savers keep it so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from rlhf_core.batching.collate import collate
from rlhf_core.batching.rows import TokenRow
from rlhf_core.models.load import load_lm
from rlhf_core.models.modules import PolicyModule
from tests.tiny_models import ARCHITECTURES, Architecture, tiny_model

LENGTHS = [9, 70, 31]
ROWS = [TokenRow.from_prompt_response([3 + i for i in range(4)], [5 + i for i in range(n - 4)]) for n in LENGTHS]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("recompute", [False, True])
def test_no_attention_is_computed_over_the_whole_line(
    tmp_path: Path, arch: Architecture, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[int] = []
    attend = functional.scaled_dot_product_attention

    def recording(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        widths.append(query.shape[2])
        return attend(query, *args, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", recording)
    model = load_lm(tiny_model(tmp_path, arch), dtype="fp32", attention="sdpa").train()
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = PolicyModule(model)
    widths.clear()
    policy(collate(ROWS, pad_id=0, packed=True))[0].sum().backward()
    assert sorted(widths) == sorted(LENGTHS * 2 * (2 if recompute else 1))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gradients_are_those_of_eager_attention_over_the_whole_line(tmp_path: Path, arch: Architecture) -> None:
    gradients = []
    for attention in ("sdpa", "eager"):
        model = load_lm(tiny_model(tmp_path, arch), dtype="fp32", attention=attention)
        PolicyModule(model)(collate(ROWS, pad_id=0, packed=True))[0].mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4)
