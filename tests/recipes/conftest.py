"""One tiny model of each architecture and one small data artifact for all tests of the recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipes.small_jobs import write_data
from tests.tiny_models import ARCHITECTURES, Architecture, tiny_model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[Architecture, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {arch: tiny_model(folder, arch) for arch in ARCHITECTURES}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))
