"""Training checkpoint to Hugging Face folder: ZeRO shards put together, adapters merged, reloaded, compared and generated with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_processing.errors import ConfigError
from rlhf_core.batching.templates import Renderer
from rlhf_core.credit.reading import ENTROPY_MODEL_NAME, PARAMS_NAME, READING_NAME, read_reading
from rlhf_core.engine.artifact import LATEST_NAME, WEIGHTS_NAME, PolicyDescription, read_policy
from rlhf_core.models.generation import drop_idle
from rlhf_core.models.load import load_lm, load_scorer, load_tokenizer, set_dropout
from rlhf_core.models.lora import add_lora, merged_tensors
from rlhf_core.models.scorer import is_own_scorer
from rlhf_core.models.tokenizer_files import copy_tokenizer
from rlhf_core.settings.models import ConvertConfig

PROBE_TOKENS = 16
SMOKE_TOKENS = 8
GIB = 1 << 30
_OPTIMIZER, _FLAT = "optimizer_state_dict", "single_partition_of_fp32_groups"


# What is done, in order: the lines that people wait in front of.
STEPS = (
    "loading the model that training started from",
    "merging what was trained into it",
    "writing the weights",
    "loading what was written, to compare it",
    "generating with it",
)


def convert_checkpoint(
    checkpoint: Path,
    base: Path,
    output: Path,
    config: ConvertConfig,
    lineage: dict[str, Any],
    *,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Write the model of `checkpoint` (trained from the folder `base`) to `output`; returns facts about it.

    `tell` is called with each of `STEPS` as it begins. Weights are merged in fp32 and rounded once. Raises `ConfigError` where
    checkpoint and base do not fit, and where the written folder does not give exactly the outputs of the model in memory, or cannot
    be generated with.
    """
    policy = read_policy(checkpoint)
    loading, merging, writing, comparing, generating = STEPS
    tell(loading)
    fp32, target = (_loaded(base, policy, dtype, new_head=policy.head == "score") for dtype in ("fp32", config.dtype))
    tell(merging)
    model = merged_model(policy, _trained_tensors(checkpoint).items(), fp32, target)
    del fp32, target
    tell(writing)
    publish(model, policy, base, checkpoint, output, max_shard_size=round(config.max_shard_gib * GIB))
    facts = {
        "architecture": policy.architecture,
        "head": policy.head,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": config.dtype,
    }
    if read_reading(checkpoint) is not None:
        _take_reading(checkpoint, base, output)
    (output / "README.md").write_text(_model_card(facts, policy, lineage, is_own_scorer(model)), encoding="utf-8")
    tell(comparing)
    reloaded = _loaded(output, policy, config.dtype, new_head=False)
    check_reloaded(model, reloaded, output)
    if policy.head == "lm":
        tell(generating)
        facts["generated_tokens"] = check_generates(reloaded, output)
    return facts


def merged_model(policy: PolicyDescription, trained: Iterable[tuple[str, Tensor]], base: Any, target: Any) -> Any:
    """`target` with all tensors of `base` after training: `trained` put in, adapters merged in fp32, rounded once.

    Both are the model that training started from; `base`, in fp32, is used up. Raises `ConfigError` for a trained tensor that
    has no place, and for a place that gets none.
    """
    if policy.lora is not None:
        add_lora(base, policy.lora)
    put_in(base, trained, {name for name, parameter in base.named_parameters() if parameter.requires_grad})
    put_in(target, merged_tensors(base), {name for name, _ in merged_tensors(target)})
    return target


def publish(model: Any, policy: PolicyDescription, base: Path, checkpoint: Path, output: Path, **saving: Any) -> None:
    """Write the folder of `model`: weights, settings as those of `base`, the tokenizer of `checkpoint`.

    `saving` goes to `save_pretrained`.
    """
    from transformers import AutoConfig

    output.mkdir(parents=True, exist_ok=True)
    copy_tokenizer(checkpoint, output)
    if policy.head == "score":
        _tell_padding_from_the_end(model, output)
    else:
        _tell_where_responses_stop(model, output)
    # It was loaded without dropout; what is published is set as its base is.
    set_dropout(model.config, AutoConfig.from_pretrained(base, trust_remote_code=True))
    model.save_pretrained(output, **saving)


def _take_reading(checkpoint: Path, base: Path, output: Path) -> None:
    """What a reward model of segments needs to read a response: how, and the frozen language model that tells them."""
    for name in (READING_NAME, PARAMS_NAME):
        shutil.copyfile(checkpoint / name, output / name)
    shutil.copytree(base, output / ENTROPY_MODEL_NAME, ignore=shutil.ignore_patterns("manifest.json", "events.jsonl"))


def _loaded(folder: Path, policy: PolicyDescription, dtype: Any, *, new_head: bool) -> Any:
    if policy.head == "lm":
        return load_lm(folder, dtype=dtype, attention="auto", trust_remote_code=True)
    return load_scorer(folder, dtype=dtype, attention="auto", trust_remote_code=True, new_head=new_head)


def _trained_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """The trained weights in fp32 and the saved buffers, under their names in the Hugging Face model."""
    state = zero_tensors(checkpoint / WEIGHTS_NAME, with_frozen=False)
    return {name.removeprefix("hf."): value for name, value in state.items()}


def zero_tensors(root: Path, tag: str | None = None, *, with_frozen: bool) -> dict[str, Tensor]:
    """The weights of a DeepSpeed checkpoint in fp32, under the names that its trainer gave them; `tag` None takes the latest step."""
    folder = root / (tag or (root / LATEST_NAME).read_text(encoding="utf-8").strip())
    shards = sorted(folder.glob("*_optim_states.pt"), key=_rank_of)
    state: dict[str, Tensor]
    if not shards:  # ZeRO stage 0 shards nothing: the weights are in the model's own file
        state = _read(folder / "mp_rank_00_model_states.pt")["module"]
    elif "zero_stage" not in _read(shards[0])[_OPTIMIZER]:
        state = _bf16_stage_1_weights(folder, shards)
    else:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        state = get_fp32_state_dict_from_zero_checkpoint(str(root), tag=folder.name, exclude_frozen_parameters=not with_frozen)
    return state


def _bf16_stage_1_weights(folder: Path, shards: list[Path]) -> dict[str, Tensor]:
    """The fp32 master weights of DeepSpeed's bf16 optimizer, which `zero_to_fp32` does not read, and the buffers.

    Every rank's file holds one flat slice a parameter group, and says where each parameter's piece of it begins.
    """
    states = _read(folder / "mp_rank_00_model_states.pt")
    shapes = {name: shape for group in states["param_shapes"] for name, shape in group.items()}
    pieces: dict[str, list[Tensor]] = {}
    for shard in shards:
        optimizer = _read(shard)[_OPTIMIZER]
        for flat, places in zip(optimizer[_FLAT], optimizer["param_slice_mappings"], strict=True):
            for name, place in places.items():
                pieces.setdefault(name, []).append(flat[place.start : place.start + place.numel])
    weights = {name: torch.cat(parts).reshape(shapes[name]) for name, parts in pieces.items()}
    return weights | {name: states["module"][name] for name in states["buffer_names"]}


def _rank_of(shard: Path) -> int:
    return int(shard.name.split("_pp_rank_")[1].split("_")[0])


def _read(file: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(file, map_location="cpu", mmap=True, weights_only=False)
    return state


@torch.no_grad()
def put_in(model: Any, tensors: Iterable[tuple[str, Tensor]], expected: set[str]) -> None:
    """Copy tensors to their places in the model: each must have one of its shape, and each `expected` place must get one."""
    places = model.state_dict()
    given: set[str] = set()
    unknown: set[str] = set()
    for name, tensor in tensors:
        if name in places and places[name].shape == tensor.shape:
            places[name].copy_(tensor)
            given.add(name)
        else:
            unknown.add(f"{name} {list(tensor.shape)}")
    missing = {f"{name} {list(places[name].shape)}" for name in expected - given}
    if missing or unknown:
        raise ConfigError(
            f"checkpoint and base model do not fit: the checkpoint lacks {sorted(missing)[:3]} and has unknown "
            f"{sorted(unknown)[:3]}; convert with the model folder that the training started from"
        )


def _tell_padding_from_the_end(model: Any, folder: Path) -> None:
    """Give a scorer a pad token that ends no response.

    transformers reads the score at the rightmost token that is not padding. Where padding is the end token, that is one
    token before the place where the score was trained. Without another special token it scores one sequence at a time.
    """
    tokenizer = load_tokenizer(folder, trust_remote_code=True)
    ends = set(Renderer(tokenizer).stop_ids)
    candidates = [tokenizer.pad_token_id, *tokenizer.all_special_ids]
    pad_id = next((i for i in candidates if i is not None and i not in ends), None)
    model.config.pad_token_id = pad_id
    if pad_id != tokenizer.pad_token_id:
        tokenizer.pad_token = None if pad_id is None else tokenizer.convert_ids_to_tokens(pad_id)
        tokenizer.save_pretrained(folder)


def _tell_where_responses_stop(model: Any, folder: Path) -> None:
    """`generate` stops at a list of tokens in the generation config: the template's end of turn must be among them."""
    stop_ids = Renderer(load_tokenizer(folder, trust_remote_code=True)).stop_ids
    model.generation_config.eos_token_id = stop_ids if len(stop_ids) > 1 else stop_ids[0]
    drop_idle(model.generation_config)


@torch.no_grad()
def check_reloaded(model: Any, reloaded: Any, output: Path) -> None:
    """A written folder must give, bit for bit, what the model in memory gives."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.arange(1, PROBE_TOKENS + 1)[None] * 7 % vocabulary
    expected, got = (m.eval()(input_ids=ids).logits for m in (model, reloaded))
    if not torch.equal(expected, got):
        gap = (expected.float() - got.float()).abs().max().item()
        raise ConfigError(
            f"the model written to {output} differs from the one in memory (largest logit gap {gap:.3g}); do not use it"
        )


@torch.no_grad()
def check_generates(reloaded: Any, output: Path) -> int:
    """Have a written folder answer a question as its own settings say; the number of tokens that came."""
    tokenizer = load_tokenizer(output, trust_remote_code=True)
    prompt = torch.tensor([Renderer(tokenizer).prompt_ids([{"role": "user", "content": "Hello"}])])
    try:
        # Drawn by the folder's settings, it must not move what is drawn elsewhere.
        with torch.random.fork_rng(devices=[]):
            answer = reloaded.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=SMOKE_TOKENS, pad_token_id=tokenizer.pad_token_id
            )[0, prompt.shape[1] :]
        tokenizer.decode(answer)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever it is, whoever serves the folder would meet it
        reason = " ".join(str(error).split())
        raise ConfigError(f"the model written to {output} cannot generate: {type(error).__name__}: {reason}") from error
    return len(answer)


def _model_card(facts: dict[str, Any], policy: PolicyDescription, lineage: dict[str, Any], own_scorer: bool) -> str:
    """The README.md of a model folder: what it is, what it was made from, how to load it."""
    task = "text-generation" if policy.head == "lm" else "text-classification"
    auto = "AutoModelForCausalLM" if policy.head == "lm" else "AutoModelForSequenceClassification"
    adapters = "all weights" if policy.lora is None else f"LoRA rank {policy.lora.rank}, alpha {policy.lora.alpha:g}, merged"
    loading = f"Load it with `{auto}.from_pretrained(folder)`."
    if own_scorer:
        loading = "transformers has no such class by itself: load it with `rlhf_core.models.load.load_scorer`."
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: {task}\ntags: [alignflow]\n---\n\n"
        f"# {policy.architecture}, trained by alignflow\n\n"
        f"- parameters: {facts['parameters']:,}\n- precision: {facts['dtype']}\n- trained: {adapters}, in {policy.dtype}\n\n"
        f"{loading}\n\n"
        f"## Lineage\n\n```json\n{json.dumps(lineage, indent=2)}\n```\n"
    )
