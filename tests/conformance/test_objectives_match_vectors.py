"""Every case of every vector file against the project's functions: fp64 to the case's tolerance, fp32 to 1e-4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance_operations import OPERATIONS
from torch import Tensor

FP32_TOLERANCE = 1e-4


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder: Path = metafunc.config.getoption("--vectors")
    cases = [
        pytest.param(case, id=f"{path.stem}-{case['id']}")
        for path in sorted(folder.glob("*.json"))
        for case in json.loads(path.read_text())["cases"]
    ]
    if not cases:
        raise pytest.UsageError(f"--vectors {folder}: no vector files (*.json) there; give a folder that holds some")
    metafunc.parametrize("case", cases)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_operation_gives_the_expected_values(case: dict[str, Any], dtype: torch.dtype) -> None:
    assert case["op"] in OPERATIONS, f"op '{case['op']}' has no function here; map it in conformance_operations.py"
    inputs = {name: _tensor(value, dtype) for name, value in case["inputs"].items()}
    outputs = OPERATIONS[case["op"]](**inputs, **case.get("params", {}))
    tolerance = case["tol"] if dtype == torch.float64 else FP32_TOLERANCE
    for name, expected in case["expected"].items():
        actual = outputs[name]
        assert actual.dtype == dtype, f"{name} came back as {actual.dtype}"
        torch.testing.assert_close(actual, torch.tensor(expected, dtype=dtype), atol=tolerance, rtol=tolerance)


def _tensor(value: Any, dtype: torch.dtype) -> Tensor | None:
    """Whole numbers stay whole (labels, flags); the rest takes the precision under test; absent values stay absent."""
    if value is None:
        return None
    tensor = torch.tensor(value, dtype=torch.float64 if _has_floats(value) else None)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _has_floats(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, list) and any(map(_has_floats, value)))
