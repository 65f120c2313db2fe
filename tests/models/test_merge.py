"""Merged models: the numbers of each method's definition, written tensor by tensor into a folder that everybody can load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from data_processing.errors import ConfigError
from rlhf_core.batching.rendering import Rendering, write_rendering
from rlhf_core.events import EventLog
from rlhf_core.models import merge as merge_module
from rlhf_core.models.merge import merge_models, merged_tensor
from rlhf_core.settings.models import MergeConfig
from tasks.merge import STAGE
from tasks.runtime.contract.context import ArtifactRef, StageContext
from tests.tiny_models import tiny_model

Folders = dict[str, Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny_model(folder, "llama", seed=seed) for seed, name in enumerate(("base", "one", "two", "three"))}


def merged(models: Folders, output: Path, *names: str, seed: int = 1, **settings: Any) -> dict[str, Tensor]:
    output.mkdir(parents=True)
    chosen = {name: models[name] for name in names}
    merge_models(chosen, models["base"], output, MergeConfig(**settings), seed=seed, lineage={})
    return weights(output)


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def ties(differences: list[Tensor], factors: list[float], density: float) -> Tensor:
    """Trim, elect, merge, number by number."""
    kept = []
    for difference in differences:
        flat = difference.flatten()
        order = flat.abs().argsort(descending=True)[: int(density * len(flat))]
        trimmed = torch.zeros_like(flat)
        trimmed[order] = flat[order]
        kept.append(trimmed)
    total = torch.zeros_like(kept[0])
    for i in range(len(total)):
        sign = 1.0 if sum(float(values[i]) for values in kept) >= 0 else -1.0
        agreeing = [
            factor * float(values[i]) for values, factor in zip(kept, factors, strict=True) if float(values[i]) * sign > 0
        ]
        total[i] = sum(agreeing) / max(len(agreeing), 1)
    return total.view_as(differences[0])


def test_linear_is_the_mean_by_weights(models: Folders, tmp_path: Path) -> None:
    found = merged(models, tmp_path / "out", "one", "two", "three", weights={"one": 3.0, "two": 0.5, "three": 1.5})
    one, two, three = (weights(models[name]) for name in ("one", "two", "three"))
    assert found.keys() == one.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, 0.6 * one[name] + 0.1 * two[name] + 0.3 * three[name])


@pytest.mark.parametrize("method", ["linear", "ties", "dare_linear", "dare_ties"])
def test_a_model_merged_with_itself_is_itself(method: str, models: Folders, tmp_path: Path) -> None:
    halves = {"one": 0.5, "again": 0.5} if method == "dare_linear" else {}
    found = merged(
        models | {"again": models["one"]}, tmp_path / "out", "one", "again", method=method, density=1.0, weights=halves
    )
    for name, value in weights(models["one"]).items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_ties_trims_elects_and_averages() -> None:
    generator = torch.Generator().manual_seed(0)
    base, *tensors = (torch.randn(6, 7, generator=generator) for _ in range(4))
    factors = [1.0, 0.5, 2.0]
    found = merged_tensor(tensors, base, factors, MergeConfig(method="ties", density=0.4), seed=0)
    torch.testing.assert_close(found, base + ties([tensor - base for tensor in tensors], factors, 0.4))


def test_dare_drops_a_share_and_makes_up_for_it() -> None:
    base, tensors = torch.zeros(100, 100), [torch.ones(100, 100), 3 * torch.ones(100, 100)]
    found = merged_tensor(tensors, base, [1.0, 1.0], MergeConfig(method="dare_linear", density=0.25), seed=0)
    assert set(found.unique().tolist()) == {0.0, 4.0, 12.0, 16.0}
    assert found.mean().item() == pytest.approx(4.0, rel=0.05)
    assert (found == 16.0).float().mean().item() == pytest.approx(1 / 16, abs=0.01), "both drop the same differences"


def test_what_dare_drops_depends_on_the_seed_and_on_nothing_else(models: Folders, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"method": "dare_ties", "density": 0.5}
    first = merged(models, tmp_path / "first", "one", "two", **settings)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = merged(models, tmp_path / "again", "two", "one", **settings)
    other = merged(models, tmp_path / "other", "one", "two", seed=2, **settings)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


def test_precision_is_that_of_the_first_and_sums_are_rounded_once(models: Folders, tmp_path: Path) -> None:
    values = [torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([1.0 + 2**-7])]
    found = merged_tensor([value.bfloat16() for value in values], None, [1.0, 1.0, 1.0], MergeConfig(), seed=0)
    assert found.dtype == torch.bfloat16
    assert found.item() == torch.tensor(1.0 + 2**-7 / 3).bfloat16().item()
    base, small = torch.tensor([1.0]).bfloat16(), torch.tensor([3 * 2**-10]).bfloat16()
    assert torch.equal(merged_tensor([small, small], base, [1.0, 1.0], MergeConfig(method="ties", density=1.0), seed=0), small)
    counts = torch.tensor([3])
    assert merged_tensor([counts, counts + 1], None, [1.0, 1.0], MergeConfig(), seed=0) is counts


def test_shards_are_read_and_written_one_at_a_time(models: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForCausalLM.from_pretrained(models["one"], dtype=torch.float32)
    for source in models["one"].iterdir():
        if source.suffix != ".safetensors":
            (tmp_path / "a").mkdir(exist_ok=True)
            (tmp_path / "a" / source.name).write_bytes(source.read_bytes())
    model.save_pretrained(tmp_path / "a", max_shard_size="30KB")
    shards = sorted(path.name for path in (tmp_path / "a").glob("*.safetensors"))
    assert len(shards) > 2
    saved: list[int] = []
    save = merge_module.save_file
    monkeypatch.setattr(
        merge_module, "save_file", lambda tensors, *args, **kw: (saved.append(len(tensors)), save(tensors, *args, **kw))
    )
    found = merged(models | {"a": tmp_path / "a"}, tmp_path / "out", "a", "two")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == shards
    assert len(saved) == len(shards) and sum(saved) == len(found)
    whole = merged(models, tmp_path / "whole", "one", "two")
    assert all(torch.equal(value, whole[name]) for name, value in found.items())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(loaded.get_input_embeddings().weight, found["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"arch": "qwen3"}, r"'one' is a \['LlamaForCausalLM'\] and 'other' a \['Qwen3ForCausalLM'\]"),
        ({"arch": "llama", "tied": False}, r"'one' and 'other' have tensors of other names or shapes \(lm_head.weight\)"),
    ],
)
def test_models_that_are_not_alike_are_refused(other: dict[str, Any], reason: str, models: Folders, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        merged(models | {"other": tiny_model(tmp_path, **other)}, tmp_path / "out", "one", "other")
    assert "\n" not in str(caught.value)
    assert not any((tmp_path / "out").iterdir())


def test_other_tokens_are_refused(models: Folders, tmp_path: Path) -> None:
    odd = tiny_model(tmp_path, "llama", seed=7)
    file = odd / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, two = list(vocabulary)[100:102]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="'one' and 'other' have other tokens"):
        merged(models | {"other": odd}, tmp_path / "out", "one", "other")


def test_the_base_must_be_alike_only_where_it_is_used(models: Folders, tmp_path: Path) -> None:
    others = models | {"base": tiny_model(tmp_path, "gpt2")}
    merged(others, tmp_path / "linear", "one", "two")
    with pytest.raises(ConfigError, match="and 'base' a"):
        merged(others, tmp_path / "ties", "one", "two", method="ties")


def test_the_stage_writes_a_folder_with_tokenizer_rendering_and_card(models: Folders, tmp_path: Path) -> None:
    write_rendering(Rendering(date=None, chat_template_kwargs={}), models["one"])
    # What the store keeps in each artifact, and what belongs to one model alone.
    (models["one"] / "manifest.json").write_text("{}")
    (models["one"] / "README.md").write_text("one")
    (tmp_path / "out").mkdir()
    refs = {name: ArtifactRef(kind="model", key=f"k-{name}", uri="/x", sha256="0", producer="p") for name in ("base", "b", "a")}
    inputs = {"base": models["base"], "b": models["two"], "a": models["one"]}
    config = MergeConfig(method="ties", weights={"b": 0.25})
    events = EventLog(tmp_path / "events.jsonl")
    STAGE.run(StageContext(config, inputs, refs, tmp_path / "out", tmp_path, 3, 1, events))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "rendering.json", "generation_config.json"} <= names
    assert "manifest.json" not in names
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- method: ties, density 0.5\n- weights: a 1, b 0.25\n" in card
    assert '"key": "k-a"' in card and '"uri"' not in card
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
