"""Every case of every vector file against the project's functions: fp64 to the case's tolerance, fp32 to 1e-4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance_operations import OPERATIONS
from credit_operations import CREDIT_OPERATIONS
from repulse_operations import REPULSE_OPERATIONS
from segment_operations import SEGMENT_OPERATIONS
from torch import Tensor
from vr_cli_operations import FP64_OPERATIONS, VR_CLI_OPERATIONS

FP32_TOLERANCE = 1e-4
PLAIN_OPERATIONS = CREDIT_OPERATIONS | SEGMENT_OPERATIONS | VR_CLI_OPERATIONS


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
    if case["op"] in REPULSE_OPERATIONS:
        outputs = REPULSE_OPERATIONS[case["op"]](**case["inputs"], **case["params"], dtype=dtype)
        _check_values(outputs, case, dtype)
        return
    if case["op"] in PLAIN_OPERATIONS:
        _check_plain(case, dtype)
        return
    assert case["op"] in OPERATIONS, f"op '{case['op']}' has no function here; map it in conformance_operations.py"
    inputs = {name: _tensor(value, dtype) for name, value in case["inputs"].items()}
    outputs = OPERATIONS[case["op"]](**inputs, **case.get("params", {}))
    tolerance = case["tol"] if dtype == torch.float64 else FP32_TOLERANCE
    for name, expected in case["expected"].items():
        actual = outputs[name]
        assert actual.dtype == dtype, f"{name} came back as {actual.dtype}"
        torch.testing.assert_close(actual, torch.tensor(expected, dtype=dtype), atol=tolerance, rtol=tolerance)


def _check_plain(case: dict[str, Any], dtype: torch.dtype) -> None:
    """An operation on plain values; numbers with a fraction are rounded to the precision under test first."""
    exact = case["op"] in FP64_OPERATIONS
    rounded = {name: value if exact else _rounded(value, dtype) for name, value in case["inputs"].items()}
    _check_values(PLAIN_OPERATIONS[case["op"]](**rounded, **case.get("params", {})), case, dtype)


def _check_values(outputs: dict[str, Any], case: dict[str, Any], dtype: torch.dtype) -> None:
    tolerance = case["tol"] if dtype == torch.float64 else FP32_TOLERANCE
    for name, expected in case["expected"].items():
        _same(outputs[name], expected, tolerance, name)


def _rounded(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float64).to(dtype).item()
    if isinstance(value, list):
        return [_rounded(item, dtype) for item in value]
    return {name: _rounded(item, dtype) for name, item in value.items()} if isinstance(value, dict) else value


def _same(found: Any, expected: Any, tolerance: float, place: str) -> None:
    if isinstance(expected, dict):
        for name, own in expected.items():
            _same(found[name], own, tolerance, f"{place}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), f"{place} has {len(found)} entries, expected {len(expected)}"
        for i, (own, wanted) in enumerate(zip(found, expected, strict=True)):
            _same(own, wanted, tolerance, f"{place}[{i}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=tolerance, rel=tolerance), place
    else:
        assert found == expected, place


def _tensor(value: Any, dtype: torch.dtype) -> Tensor | None:
    """Whole numbers stay whole (labels, flags); the rest takes the precision under test; absent values stay absent."""
    if value is None:
        return None
    tensor = torch.tensor(value, dtype=torch.float64 if _has_floats(value) else None)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _has_floats(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, list) and any(map(_has_floats, value)))
