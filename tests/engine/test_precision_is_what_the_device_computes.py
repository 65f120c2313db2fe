"""`dtype: auto` is what torch itself calls native, and becomes part of the plan and the key."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluation.config import EvaluateConfig
from flows.graph.build import settled
from rlhf_core import precision
from rlhf_core.precision import native_dtype
from rlhf_core.settings.supervised import SftConfig
from rlhf_core.settings.training import EngineSettings

pytestmark = pytest.mark.seconds

ASK_BOTH = (
    "import torch; from rlhf_core.precision import native_dtype; "
    "print(torch.ops.mkldnn._is_mkldnn_bf16_supported(), native_dtype(on_gpu=False))"
)


@pytest.mark.parametrize("cap", ["", "AVX2", "AVX512_CORE"])
def test_the_cpu_is_judged_as_torch_judges_it(cap: str) -> None:
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": cap}
    answer = subprocess.run(
        [sys.executable, "-c", ASK_BOTH], check=True, capture_output=True, text=True, env=environment, timeout=120
    )
    assert answer.stdout.split() in (["True", "bf16"], ["False", "fp32"])


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The file that says what the CPU can, to be written by the test."""
    monkeypatch.setattr(precision, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    precision._cpu_has_bf16.cache_clear()
    yield tmp_path / "cpuinfo"
    precision._cpu_has_bf16.cache_clear()


@pytest.mark.parametrize(
    ("line", "dtype"),
    [
        ("flags\t\t: fpu sse2 avx avx2 fma", "fp32"),
        ("flags\t\t: avx2 avx512f avx512bw avx512dq avx512vl", "bf16"),
        ("flags\t\t: avx2 avx512f avx512cd", "fp32"),
        ("flags\t\t: avx2 avx_vnni avx_vnni_int8 avx_ne_convert", "bf16"),
        ("Features\t: fp asimd bf16", "bf16"),
        ("Features\t: fp asimd", "fp32"),
        ("processor : 0", "fp32"),
    ],
)
def test_processors_are_told_apart_by_their_flags(line: str, dtype: str, cpu: Path) -> None:
    cpu.write_text(f"processor\t: 0\n{line}\n")
    assert native_dtype(on_gpu=False) == dtype


def test_auto_is_settled_before_it_is_planned_with(cpu: Path) -> None:
    cpu.write_text("flags : avx2\n")
    assert settled(EvaluateConfig()) == EvaluateConfig(dtype="fp32")
    assert settled(SftConfig()) == SftConfig(engine=EngineSettings(dtype="fp32"))
    asked = SftConfig(engine=EngineSettings(dtype="bf16"))
    assert settled(asked) == asked


def test_without_fp32_master_weights_auto_is_fp32() -> None:
    assert EngineSettings(zero_stage=0).precision == "fp32"


@pytest.mark.parametrize(
    ("answer", "dtype"), [("echo 9.0; echo 8.0", "bf16"), ("echo 9.0; echo 7.5", "fp32"), ("exit 9", "bf16")]
)
def test_gpus_are_as_good_as_the_weakest_and_elsewhere_where_there_are_none(
    answer: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    precision._gpus_have_bf16.cache_clear()
    try:
        assert native_dtype(on_gpu=True) == dtype
    finally:
        precision._gpus_have_bf16.cache_clear()
