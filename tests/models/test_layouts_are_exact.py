"""What training reads from a model is the same however rows are laid out, and no row ever sees another.

One place for every output (log-probs of SFT, preference and online training, scores, values), attention and layout.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlhf_core.batching.collate import ModelBatch, collate
from rlhf_core.batching.rows import TokenRow
from rlhf_core.models.load import load_lm, load_scorer
from rlhf_core.models.modules import PolicyModule, ScoreModule
from tests.tiny_models import ARCHITECTURES, Architecture, tiny_model

Module = PolicyModule | ScoreModule
# Lengths of prompts and their responses. Gemma's window of 64 tokens ends within the third prompt and a response of the second.
LENGTHS = [(5, [9]), (7, [70, 4]), (80, [12, 1, 30, 3]), (1, [2, 20])]

OUTPUTS: dict[str, Callable[[Module, ModelBatch], Tensor]] = {
    "log-probs": lambda module, batch: module(batch)[0],
    "tempered log-probs": lambda module, batch: module(batch, temperature=0.7)[0],
    "entropies": lambda module, batch: module(batch, with_entropy=True)[1],
    "scores": lambda module, batch: module(batch)[:, None],
    "values": lambda module, batch: module(batch, per_token=True),
}
LAYOUTS = [("sdpa", True, True), ("sdpa", True, False), ("sdpa", False, False), ("eager", True, False), ("eager", False, False)]
every_output = pytest.mark.parametrize("output", OUTPUTS)
every_layout = pytest.mark.parametrize(("attention", "packed", "shared"), LAYOUTS)
every_architecture = pytest.mark.parametrize("arch", ARCHITECTURES)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[Architecture, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {arch: tiny_model(folder, arch) for arch in ARCHITECTURES}


def module_of(output: str, path: Path, attention: str) -> Module:
    return _module(output in ("scores", "values"), path, attention)


@cache
def _module(scorer: bool, path: Path, attention: str) -> Module:
    if not scorer:
        return PolicyModule(load_lm(path, dtype="fp32", attention=attention))
    model = load_scorer(path, dtype="fp32", attention=attention, new_head=True)
    torch.nn.init.normal_(model.score.weight, std=0.2, generator=torch.Generator().manual_seed(0))
    return ScoreModule(model)


def rows(changed: int | None = None) -> list[TokenRow]:
    """All rows of LENGTHS; row `changed` gets another response."""
    generator, found = torch.Generator().manual_seed(1), []
    draw = lambda n: torch.randint(3, 480, (n,), generator=generator).tolist()  # noqa: E731
    for prompt_length, responses in LENGTHS:
        prompt = draw(prompt_length)
        found += [TokenRow.from_prompt_response(prompt, draw(length)) for length in responses]
    if changed is not None:
        row = found[changed]
        found[changed] = TokenRow.from_prompt_response(row.ids[: row.prompt_length], draw(row.n_targets))
    return found


@torch.no_grad()
@every_output
@every_layout
@every_architecture
def test_a_row_in_a_batch_is_the_row_alone(
    output: str, attention: str, packed: bool, shared: bool, arch: Architecture, paths: dict[Architecture, Path]
) -> None:
    module = module_of(output, paths[arch], attention)
    together = OUTPUTS[output](module, collate(rows(), pad_id=0, packed=packed, shared=shared))
    for i, row in enumerate(rows()):
        alone = OUTPUTS[output](module, collate([row], pad_id=0, packed=True))[0]
        torch.testing.assert_close(together[i, : len(alone)], alone, atol=1e-5, rtol=0)


@torch.no_grad()
@every_output
@every_layout
def test_changing_a_neighbour_changes_nothing_at_all(
    output: str, attention: str, packed: bool, shared: bool, paths: dict[Architecture, Path]
) -> None:
    for arch in ARCHITECTURES:
        module = module_of(output, paths[arch], attention)
        before, after = (
            OUTPUTS[output](module, collate(some, pad_id=0, packed=packed, shared=shared)) for some in (rows(), rows(changed=3))
        )
        others = [i for i in range(len(before)) if i != 3]
        assert torch.equal(before[others], after[others])
        assert not torch.equal(before[3], after[3])


@pytest.mark.parametrize("output", ["log-probs", "scores", "values"])
@every_architecture
def test_a_prompt_held_once_gets_its_gradient_from_every_response(
    output: str, arch: Architecture, paths: dict[Architecture, Path]
) -> None:
    gradients = []
    for shared in (True, False):
        module = module_of(output, paths[arch], "sdpa")
        assert module.layouts.shared
        module.zero_grad()
        values = OUTPUTS[output](module, collate(rows(), pad_id=0, packed=True, shared=shared))
        (values * torch.linspace(-1, 1, values.numel()).view_as(values)).mean().backward()
        gradients.append({name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_only_attention_by_segment_shares_prompts(arch: Architecture, paths: dict[Architecture, Path]) -> None:
    assert not module_of("log-probs", paths[arch], "eager").layouts.shared
