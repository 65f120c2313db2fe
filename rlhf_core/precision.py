"""Which precision a processor computes natively, told without importing torch: plans are made by it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

Dtype = Literal["bf16", "fp32"]
Native = Callable[[bool], Dtype]  # what a GPU (True), or the CPU, of some machine computes natively

_CPUINFO = Path("/proc/cpuinfo")
# What oneDNN, which multiplies torch's matrices on CPUs, asks of a processor: AVX-512, the bf16 part of AVX2, or Arm's.
_AVX512, _AVX2_BF16, _ARM = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}, {"avx_vnni_int8", "avx_ne_convert"}, {"bf16"}
# Limits that a user sets on it, and what is left of the above.
_CAPPED: dict[str, list[set[str]]] = {"SSE41": [], "AVX": [], "AVX2": [], "AVX2_VNNI": [], "AVX2_VNNI_2": [_AVX2_BF16]}
_BF16_CAPABILITY = 8.0  # NVIDIA's compute capability, from Ampere on


def native_dtype(on_gpu: bool) -> Dtype:
    """bf16 where the device computes it natively, else fp32: of the CPU, or of the weakest GPU of this machine.

    A machine without GPUs plans for one that has them: bf16.
    """
    return "bf16" if (_gpus_have_bf16() if on_gpu else _cpu_has_bf16()) else "fp32"


@cache
def _cpu_has_bf16() -> bool:
    """What `torch.ops.mkldnn._is_mkldnn_bf16_supported()` answers."""
    cap = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "").upper()
    flags = _cpu_flags()
    return any(wanted <= flags for wanted in _CAPPED.get(cap, [_AVX512, _AVX2_BF16, _ARM]))


def _cpu_flags() -> set[str]:
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.lower().startswith(("flags", "features"))), set())


@cache
def _gpus_have_bf16() -> bool:
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return min(float(line) for line in answer.stdout.split()) >= _BF16_CAPABILITY
    except (OSError, subprocess.SubprocessError, ValueError):
        return True
