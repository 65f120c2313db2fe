"""Model folders with one or more things wrong: what the gate lets through is loaded, computes and is saved again."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rlhf_core.batching.templates import Renderer
from rlhf_core.events import EventLog
from rlhf_core.models.gate import examine
from rlhf_core.models.load import load_lm, load_scorer, load_tokenizer
from rlhf_core.settings.models import BaseModelConfig
from tasks.base_model import STAGE
from tasks.runtime.contract.context import StageContext
from tests.fuzz.fuzz_templates import _template
from tests.fuzz.outcome import Finding, outcome
from tests.fuzz.values import at, damage, places, value
from tests.tiny_models import Architecture, tiny_model

WEIGHTS = "model.safetensors"
JSON_FILES = ("config.json", "config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")
SETTINGS: dict[str, tuple[Any, ...]] = {
    "vocab_size": (0, 1, 100, 10**9, None, "x"),
    "hidden_size": (0, 16, 33, -1, None),
    "num_hidden_layers": (0, 1, 3, -1, 2.0, None),
    "num_attention_heads": (0, 3, 5, None),
    "num_key_value_heads": (0, 3, 4, None),
    "hidden_act": ("relu", "nothing", None, 3),
    "model_type": ("llama", "gpt2", "bert", "t5", "nothing", "", None, 3),
    "architectures": ([], ["Nothing"], None, "LlamaForCausalLM", [3]),
    "tie_word_embeddings": (True, False, None, "x"),
    "rope_parameters": (None, {}, {"rope_type": "nothing"}, {"rope_type": "default", "rope_theta": 0}, 3),
    "max_position_embeddings": (0, 1, 8, -1, None, "x", 10**12),
    "torch_dtype": ("float16", "nothing", None),
    "dtype": ("bfloat16", "nothing", 3, None),
    "eos_token_id": (None, -1, 10**6, [1, 2], ["x"], "x", 1.5),
    "pad_token_id": (None, -1, 10**6, "x", [1]),
    "quantization_config": ({}, {"quant_method": "fp8"}, None, 3),
    "auto_map": ({"AutoConfig": "x.Y"}, {}, None, 3),
    "is_encoder_decoder": (True, None),
    "layer_types": ([], ["full_attention"], ["nothing", "nothing"], None),
    "sliding_window": (0, 1, None, -3),
    "attn_implementation": ("eager", "nothing"),
    "initializer_range": (0, -1, None, "x"),
    "rms_norm_eps": (0, None, "x", -1),
    "head_dim": (0, 7, 16, None),
    "chat_template": ("{{ x", None, 3, [], {"default": "{{ x }}"}, [{"name": "default", "template": "{{ messages }}"}]),
    "tokenizer_class": ("Nothing", None, "GPT2Tokenizer", "PreTrainedTokenizerFast", 3),
    "temperature": (0, -1, 0.5, "x", None),
    "do_sample": (True, False, None, "x"),
    "num_beams": (0, 1, 4, "x"),
    "max_new_tokens": (0, -1, 10, None, "x"),
    "transformers_version": ("99.0.0", None, 3),
}


def attempt(rng: random.Random, folder: Path) -> None:
    """Damage a folder, and take it in."""
    place = folder / "model"
    shutil.copytree(rng.choice(_sound()), place)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(SPOILERS)(rng, place)
    scores = rng.random() < 0.3
    settings: dict[str, Any] = {"path": str(place)}
    if rng.random() < 0.1:
        settings["chat_template"] = _template(rng) or None
    if rng.random() < 0.1:
        settings |= rng.choice(({"template_date": "2026-01-01"}, {"chat_template_kwargs": {"enable_thinking": False}}))
    config = BaseModelConfig.model_validate(settings)
    is_let_through = (
        outcome(lambda: examine(place, config, scores=scores), [str(place), "chat_template", "model.", "tokenizer"]) is None
    )
    if is_let_through:
        _check_promise(config, folder, scores)


def _check_promise(config: BaseModelConfig, folder: Path, scores: bool) -> None:
    """Raise where what was let through cannot be taken in, loaded, computed with, rendered for and saved."""
    taken = folder / "taken"
    taken.mkdir()
    STAGE.run(StageContext(config, {}, {}, taken, folder / "resume", 0, 1, EventLog(folder / "events.jsonl")))
    tokenizer, model = load_tokenizer(taken), load_lm(taken, dtype="fp32", attention="auto")
    rows = model.get_input_embeddings().weight.shape[0]
    if max(tokenizer.get_vocab().values()) >= rows:
        raise Finding("a token has no row")
    row = Renderer(tokenizer).conversation(
        [{"role": "user", "content": "Which ferry?"}, {"role": "assistant", "content": "Heron."}]
    )
    with torch.no_grad():
        model(torch.tensor([row.ids]), use_cache=True)
    model.save_pretrained(folder / "saved")
    if scores:
        load_scorer(taken, dtype="fp32", attention="auto", new_head=True)


@cache
def _sound() -> tuple[Path, ...]:
    kept = Path(tempfile.mkdtemp(prefix="fuzz-models-"))
    architectures: tuple[Architecture, ...] = ("llama", "gpt2", "gemma", "qwen3")
    return tuple(tiny_model(kept, architecture) for architecture in architectures)


def _spoil_file(rng: random.Random, place: Path) -> None:
    file = rng.choice(sorted(path for path in place.iterdir() if path.is_file()))
    how = rng.randrange(6)
    if how < 3:
        damage(rng, file)
        return
    file.unlink()
    if how == 4:
        file.mkdir()
    elif how == 5:
        file.symlink_to(place / "gone")


def _spoil_json(rng: random.Random, place: Path) -> None:
    path = place / rng.choice(JSON_FILES)
    content = _read(path)
    inside = places(content)
    if path.is_dir():
        return
    if not inside:
        path.write_text(json.dumps(value(rng)))
        return
    deep = rng.choice(inside)
    holder = at(content, deep[:-1])
    if rng.random() < 0.3:
        del holder[deep[-1]]
    else:
        holder[deep[-1]] = value(rng)
    path.write_text(json.dumps(content))


def _set_json(rng: random.Random, place: Path) -> None:
    name = rng.choice(tuple(SETTINGS))
    of_tokenizer, of_generation = (
        name in {"chat_template", "tokenizer_class"},
        name in {"temperature", "do_sample", "num_beams", "max_new_tokens"},
    )
    path = place / ("tokenizer_config.json" if of_tokenizer else "generation_config.json" if of_generation else "config.json")
    if not path.is_dir():
        path.write_text(json.dumps({**_read(path), name: rng.choice(SETTINGS[name])}))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _spoil_weights(rng: random.Random, place: Path) -> None:
    try:
        weights = load_file(place / WEIGHTS)
    except Exception:  # another one has spoilt it
        return
    name = rng.choice(sorted(weights))
    how = rng.randrange(6)
    if how == 0:
        del weights[name]
    elif how == 1:
        weights[rng.choice(("x", f"{name}.bias", "lm_head.weight", f"model.{name}"))] = torch.ones(rng.choice((1, 32)))
    elif how == 2:
        weights[name] = weights[name].to(rng.choice((torch.float16, torch.bfloat16, torch.int8, torch.float64)))
    elif how == 3:
        weights[name] = weights[name][: rng.randint(0, 5)].clone()
    elif how == 4:
        weights[name + "x"] = weights.pop(name)
    else:
        (place / WEIGHTS).unlink()
        torch.save(rng.choice((weights, {"state_dict": weights}, [1], weights[name])), place / "pytorch_model.bin")
        return
    save_file(weights, place / WEIGHTS, metadata=rng.choice(({"format": "pt"}, {"format": "tf"}, None)))


def _add_file(rng: random.Random, place: Path) -> None:
    name, content = rng.choice(
        (
            ("adapter_config.json", '{"peft_type": "LORA"}'),
            ("model.safetensors.index.json", '{"weight_map": {"x": "../x.safetensors"}}'),
            ("model.safetensors.index.json", "[]"),
            ("pytorch_model.bin", "x"),
            ("rendering.json", '{"date": "x"}'),
            ("rendering.json", '{"chat_template_kwargs": {"x": 1}}'),
            ("chat_template.json", '{"chat_template": "{{ x"}'),
            ("special_tokens_map.json", '{"eos_token": "<|nothing|>"}'),
            ("added_tokens.json", '{"<|more|>": 100000}'),
            ("vocab.json", "{"),
            (".hidden", "x"),
            ("chat_template.jinja", _template(rng)),
            ("chat_template.jinja", _template(rng)),
        )
    )
    if (place / name).is_dir():
        return
    (place / name).unlink(missing_ok=True)
    (place / name).write_text(content, encoding="utf-8", errors="replace")


def _shard(rng: random.Random, place: Path) -> None:
    if not (place / WEIGHTS).is_file():
        return
    (place / WEIGHTS).rename(place / "model-00001-of-00001.safetensors")
    names = {"x": rng.choice(("model-00001-of-00001.safetensors", "model-00002-of-00002.safetensors", 3, None))}
    (place / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": names}))


SPOILERS: tuple[Callable[[random.Random, Path], None], ...] = (
    _spoil_file,
    _spoil_file,
    _spoil_json,
    _spoil_json,
    _set_json,
    _set_json,
    _set_json,
    _spoil_weights,
    _add_file,
    _shard,
)
