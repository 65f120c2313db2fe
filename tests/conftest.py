"""What every test shares: an offline, single-threaded environment, the vectors option, and one local Ray."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parent.parent

# Set before any test imports torch or transformers: they read these once.
os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    DS_ACCELERATOR="cpu",
    DO_NOT_TRACK="1",
    RAY_USAGE_STATS_ENABLED="0",
    TOKENIZERS_PARALLELISM="false",
)


# The machines that run the tests are shared and slow at times; the same examples every time.
settings.register_profile("shared", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("shared")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--vectors",
        type=Path,
        default=REPOSITORY / "tests" / "conformance" / "vectors",
        help="folder of vector files (*.json) that tests/conformance compares with",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no worker is left alone with one when all others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray of this session's own."""
    with local_ray():
        yield


@contextmanager
def local_ray() -> Iterator[None]:
    """Four CPUs in name, no dashboard, this repository importable in its workers."""
    import ray

    # Short, because Ray's sockets live below it and their paths are limited to 107 bytes.
    home = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    python_path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        _temp_dir=home,
        object_store_memory=256 << 20,
        log_to_driver=False,
        runtime_env={
            "env_vars": {"PYTHONPATH": python_path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
        },
    )
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(home, ignore_errors=True)
