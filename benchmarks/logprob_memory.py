"""Peak memory of log-probs and entropies with their backward pass, against full logits: vocabulary 150,000, 4,096 tokens.

    python benchmarks/logprob_memory.py          minutes, and 14 GiB; python benchmarks/write_performance.py shows it

Each case is a process of its own, whose peak of resident memory is read before and after; hidden states, head, and their gradients, which
both need, are there before. "over" is what the pass takes beyond them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from rlhf_core.models.head import LogitTransform
from rlhf_core.models.token_logprobs import token_logprobs

TOKENS, VOCABULARY, HIDDEN = 4096, 150_000, 1024
RESULT = Path(__file__).resolve().parent / "results" / "logprob_memory.json"
WAYS, HEADS, DTYPES = ("full logits", "in chunks"), ("trained", "frozen"), ("fp32",)


def main() -> None:
    """All cases into the result file, or the one that is named."""
    if len(sys.argv) > 1:
        way, head, dtype = sys.argv[1:]
        print(*measured(way, head == "trained", torch.bfloat16 if dtype == "bf16" else torch.float32))
        return
    rows = []
    for dtype in DTYPES:
        for head in HEADS:
            (full, full_s), (chunked, chunked_s) = (_apart(way, head, dtype) for way in WAYS)
            memory = {f"{WAYS[0]}, MiB over": full, f"{WAYS[1]}, MiB over": chunked, "times less": full / chunked}
            rows.append({"dtype": dtype, "head": head, **memory, f"{WAYS[0]}, CPU-s": full_s, f"{WAYS[1]}, CPU-s": chunked_s})
            print(rows[-1], flush=True)
    result = {"title": "Memory of log-probs", "vocabulary": VOCABULARY, "tokens": TOKENS, "hidden": HIDDEN, "rows": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {RESULT}")


def _apart(way: str, head: str, dtype: str) -> tuple[float, float]:
    answer = subprocess.run([sys.executable, __file__, way, head, dtype], capture_output=True, text=True, check=True)
    mib, seconds = answer.stdout.split()
    return float(mib), float(seconds)


def measured(way: str, trains_head: bool, dtype: torch.dtype) -> tuple[float, float]:
    """MiB over what was there before, and CPU seconds, of one forward and backward pass."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden = (torch.randn(TOKENS, HIDDEN) * 0.5).to(dtype).requires_grad_()
    weight = (torch.randn(VOCABULARY, HIDDEN) * 0.02).to(dtype).requires_grad_(trains_head)
    ids = torch.randint(VOCABULARY, (TOKENS,))
    # Gradients have their place before, as in a trainer that keeps them.
    for tensor in (hidden, weight):
        if tensor.requires_grad:
            tensor.grad = torch.zeros_like(tensor).add_(0)
    _reset_peak()
    before, began = _peak_mib(), time.process_time()
    logprobs, entropies = (_full if way == WAYS[0] else _chunked)(hidden, weight, ids)
    (logprobs.sum() + 0.01 * entropies.sum()).backward()
    return _peak_mib() - before, time.process_time() - began


def _full(hidden: Tensor, weight: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    every = (hidden @ weight.T).float().log_softmax(-1)
    return every.gather(-1, ids[:, None])[:, 0], -(every.exp() * every).sum(-1)


def _chunked(hidden: Tensor, weight: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    logprobs, entropies = token_logprobs(hidden, weight, None, ids, LogitTransform(), with_entropy=True)
    assert entropies is not None
    return logprobs, entropies


def _reset_peak() -> None:
    """Let the kernel count the peak of resident memory from here (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_mib() -> float:
    lines = [line.split() for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()]
    return next(int(line[1]) for line in lines if line[0] == "VmHWM:") / 1024


if __name__ == "__main__":
    main()
