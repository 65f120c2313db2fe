"""What `gpu.py` measures: one function a subject, each giving its figures by name. Seconds are medians."""

from __future__ import annotations

import ctypes
import gc
import random
import re
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_workload import Size, preference_rows, random_ids, sft_rows, training_flops
from torch import Tensor
from torch.nn import functional

from rlhf_core.batching.balance import micro_batches
from rlhf_core.batching.collate import collate, target_mask
from rlhf_core.batching.rows import TokenRow
from rlhf_core.batching.sharing import line_tokens, plan_rows
from rlhf_core.device import device_for
from rlhf_core.engine.engine import TrainingEngine
from rlhf_core.models.head import LogitTransform
from rlhf_core.models.load import load_lm
from rlhf_core.models.modules import PolicyModule
from rlhf_core.models.token_logprobs import token_logprobs
from rlhf_core.objectives.advantages import group_advantages
from rlhf_core.objectives.aggregation import aggregate
from rlhf_core.objectives.policy import ppo_loss
from rlhf_core.objectives.preference import Pairs, dpo_loss
from rlhf_core.rollout.base import Sampling, generate
from rlhf_core.rollout.hf_engine import HfGenerator
from rlhf_core.settings.training import EngineSettings, OptimizerSettings

GPUS = float(torch.cuda.is_available())
DEVICE = device_for(GPUS)
Figures = dict[str, float | None]
GIB = 2**30


def matrix_rate(size: Size) -> Figures:
    """How fast the card multiplies two large bf16 matrices: what every share is a share of."""
    a, b = (torch.randn(size.matrix, size.matrix, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    products = 20
    seconds = timed(lambda: [a @ b for _ in range(products)], size.repeats)
    return {"matrix_tflops_per_s": 2 * size.matrix**3 * products / seconds / 1e12}


def sft(size: Size, model: Path, matrix_tflops_per_s: float) -> Figures:
    """The same rows packed into lines, and in batches of `padded_rows` padded to the longest of each batch."""
    rows = sft_rows(size)
    tokens, lengths = sum(len(row) for row in rows), [len(row) for row in rows]
    lines = [[rows[i] for i in line] for line in micro_batches(lengths, size.line, world_size=1)[0]]
    padded = [rows[i : i + size.padded_rows] for i in range(0, len(rows), size.padded_rows)]
    packed_s, packed_gib = _sft_step(size, model, lines, packed=True)
    release()
    padded_s, padded_gib = _sft_step(size, model, padded, packed=False)
    return {
        "sft_packed_tokens_per_s": tokens / packed_s,
        "sft_packed_share_of_matrix_rate": training_flops(size, rows) / packed_s / (matrix_tflops_per_s * 1e12),
        "sft_packed_peak_gib": packed_gib,
        "sft_padded_tokens_per_s": tokens / padded_s,
        "sft_padded_peak_gib": padded_gib,
        "sft_packed_over_padded": padded_s / packed_s,
    }


def logprobs(size: Size) -> Figures:
    """Log-probs with all gradients, chunk by chunk and from full fp32 logits. Peaks are over the inputs and their gradients."""
    hidden = torch.randn(size.logprobs, size.hidden, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    weight = (torch.randn(size.vocabulary, size.hidden, device=DEVICE) / size.hidden**0.5).bfloat16().requires_grad_()
    ids = torch.randint(size.vocabulary, (size.logprobs,), device=DEVICE)

    def chunked() -> Tensor:
        # As in SFT, where every target is known to weigh the same.
        return token_logprobs(hidden, weight, None, ids, LogitTransform(), expected_grad_N=torch.ones_like(ids).float())[0]

    def full() -> Tensor:
        return -functional.cross_entropy(functional.linear(hidden, weight).float(), ids, reduction="none")

    def with_gradients(values: Callable[[], Tensor]) -> Tensor:
        result = values()
        result.sum().backward()
        return result.detach()

    ours = with_gradients(chunked)
    chunked_s, chunked_gib = timed_with_peak(lambda: with_gradients(chunked), size.repeats)
    figures: Figures = {"logprobs_chunked_s": chunked_s, "logprobs_chunked_peak_gib": chunked_gib}
    try:
        difference = (ours - with_gradients(full)).abs().max().item()
        full_s, full_gib = timed_with_peak(lambda: with_gradients(full), size.repeats)
    except torch.OutOfMemoryError:  # 20 GB of logits and as much for their gradient: many a card has not that much
        names = ("full_s", "full_peak_gib", "difference_nats", "time_over_full", "peak_over_full")
        return figures | {f"logprobs_{name}": None for name in names}
    return figures | {
        "logprobs_full_s": full_s,
        "logprobs_full_peak_gib": full_gib,
        "logprobs_difference_nats": difference,
        "logprobs_time_over_full": chunked_s / full_s,
        "logprobs_peak_over_full": chunked_gib / full_gib,
    }


def dpo(size: Size, model: Path) -> Figures:
    """A DPO step over packed pairs; the reference's log-probs are there already, as after the first pass of a run."""
    pairs = preference_rows(size)
    engine = _engine(size, model)
    shared = engine.module.layouts.shared
    parts = micro_batches([line_tokens(pair, shared=shared) for pair in pairs], size.line, world_size=1)[0]

    def sums(part: Sequence[int]) -> tuple[Tensor, Tensor]:
        batch = collate([row for i in part for row in pairs[i]], pad_id=0, packed=True, shared=shared).to(engine.device)
        return engine.module(batch)[0].sum(1).view(-1, 2), target_mask(batch).sum(1).view(-1, 2)

    with engine.evaluating():
        references = [sums(part)[0] for part in parts]

    def loss(part: Sequence[int], reference: Tensor) -> Tensor:
        policy, lengths = sums(part)
        columns = (policy, reference, lengths)
        (chosen, rejected), (ref_chosen, ref_rejected), (chosen_lengths, rejected_lengths) = (c.unbind(1) for c in columns)
        nothing = torch.zeros_like(chosen)
        sides = Pairs(chosen, rejected, ref_chosen, ref_rejected, chosen_lengths, rejected_lengths, nothing)
        return dpo_loss(sides, beta=0.1).sum() / len(pairs)

    forwards = [partial(loss, part, reference) for part, reference in zip(parts, references, strict=True)]
    return {"dpo_pairs_per_s": len(pairs) / timed(lambda: engine.train_step(forwards), size.repeats)}


def grpo(size: Size, model: Path) -> Figures:
    """A GRPO step (sample, reward, one update), sampled by our decoding and by transformers' `generate`.

    Both sample the same number of tokens from the same distribution; all but the sampling is the same code. Ours ends
    with handing the new weights to the sampler, which `generate` does not need: it runs the trained module itself.
    """
    draw = random.Random(2)
    prompts = [random_ids(size, draw, size.prompt) for _ in range(size.prompts)]
    engine = _engine(size, model)
    count, length = size.prompts * size.samples, size.prompt + size.response
    sampler = HfGenerator(model, dtype="bf16", max_model_len=length, max_num_seqs=count, trust_remote_code=False, gpus=GPUS)
    sampling = Sampling(temperature=1.0, max_new_tokens=size.response, n=size.samples, greedy=False, stop_ids=())

    def ours() -> list[list[int]]:
        return [one.response_ids for group in generate(sampler, prompts, sampling, seed=0) for one in group]

    def theirs() -> list[list[int]]:
        with engine.evaluating():
            return _generate(engine.module.hf, prompts, size)

    def refresh() -> None:
        sampler.update_weights(engine.module.hf.state_dict(), engine.steps_done)

    def step(sample: Callable[[], list[list[int]]]) -> None:
        _grpo_update(engine, size, prompts, sample())
        if sample is ours:
            refresh()

    ours_s, theirs_s = (timed(partial(step, sample), size.repeats) for sample in (ours, theirs))
    ours_tokens_per_s, theirs_tokens_per_s = (count * size.response / timed(sample, size.repeats) for sample in (ours, theirs))
    return {
        "grpo_step_s": ours_s,
        "grpo_sampled_tokens_per_s": ours_tokens_per_s,
        "grpo_transformers_step_s": theirs_s,
        "grpo_transformers_sampled_tokens_per_s": theirs_tokens_per_s,
        "grpo_step_speedup": theirs_s / ours_s,
        "weight_refresh_s": timed(refresh, size.repeats),
    }


def timed(call: Callable[[], object], repeats: int) -> float:
    """Median seconds of `repeats` calls, after one that is not counted; the card has finished at both ends."""
    call()
    seconds = []
    for _ in range(repeats):
        began = now()
        call()
        seconds.append(now() - began)
    return statistics.median(seconds)


def timed_with_peak(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """`timed`, and the most memory that the calls took beyond what was taken before them, GiB."""
    call()
    before = _forget_peak()
    return timed(call, repeats), (_peak() - before) / GIB


def now() -> float:
    """Seconds, when all that was started on the card is done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def release() -> None:
    """Give back the memory of what is no longer used, so that one subject does not weigh on the next."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # engines have the process keep what it frees, and a peak is seen above that only


def _sft_step(size: Size, model: Path, parts: Sequence[Sequence[TokenRow]], packed: bool) -> tuple[float, float]:
    """Seconds of an optimizer step over `parts`, one micro-batch each, and the peak of all memory, GiB."""
    engine = _engine(size, model)
    targets = sum(row.n_targets for part in parts for row in part)

    def loss(part: Sequence[TokenRow]) -> Tensor:
        batch = collate(part, pad_id=0, packed=packed).to(engine.device)
        logprobs_BT, _ = engine.module(batch, expected_grad=-1.0 / targets)
        return -logprobs_BT.sum() / targets

    def step() -> None:
        engine.train_step([partial(loss, part) for part in parts])

    step()
    _forget_peak()
    return timed(step, size.repeats), _peak() / GIB


def _engine(size: Size, model: Path) -> TrainingEngine:
    settings = EngineSettings(dtype="bf16", zero_stage=1, micro_batch_tokens=size.line, gpus_per_rank=GPUS)
    policy = PolicyModule(load_lm(model, dtype="bf16", attention=settings.attention))
    return TrainingEngine(policy, optimizer=OptimizerSettings(learning_rate=1e-6), engine=settings, total_steps=10_000)


def _generate(hf: Any, prompts: Sequence[Sequence[int]], size: Size) -> list[list[int]]:
    ids = torch.tensor(prompts, device=DEVICE)
    sampled = hf.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        top_k=0,
        num_return_sequences=size.samples,
        max_new_tokens=size.response,
    )
    responses: list[list[int]] = sampled[:, size.prompt :].tolist()
    return responses


def _grpo_update(engine: TrainingEngine, size: Size, prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> None:
    """One on-policy update; the reward is the share of even tokens."""
    rewards = torch.tensor([sum(token % 2 == 0 for token in ids) / len(ids) for ids in responses])
    advantages = group_advantages(rewards.view(size.prompts, size.samples), "group_norm").flatten().to(engine.device)
    rows = [TokenRow.from_prompt_response(prompts[i // size.samples], ids) for i, ids in enumerate(responses)]

    def loss(part: Sequence[int]) -> Tensor:
        batch = collate([rows[i] for i in part], pad_id=0, packed=True, shared=shared).to(engine.device)
        mask, (logprobs_BT, _) = target_mask(batch), engine.module(batch)
        advantages_BT = advantages[list(part), None] * mask
        losses = ppo_loss(logprobs_BT, logprobs_BT.detach(), advantages_BT, mask, clip_low=0.2, clip_high=0.2).losses
        return aggregate(losses, mask, "sequence_mean", global_denominator=len(rows))

    shared = engine.module.layouts.shared
    parts = plan_rows(rows, size.line, 1, packed=True, shared=shared)[0]
    engine.train_step([partial(loss, part) for part in parts])


def _forget_peak() -> int:
    """Start the count of the highest memory use anew; returns what is in use, bytes."""
    release()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _peak()


def _peak() -> int:
    """Bytes: the card's, as PyTorch allocated them; without a card the process's resident memory (Linux)."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) * 1024
