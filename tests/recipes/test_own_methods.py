"""The method that docs/extending.md shows, in a package outside the checkout: planned, in the key, and trained with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flows.graph.build import build_graph
from flows.settings.presets import resolve
from rlhf_core.recipes.preference import train_preference
from rlhf_core.settings.preference import PreferenceConfig
from tasks.preference import STAGE
from tests.recipes.small_jobs import curve, job, preference_config, write_data
from tests.tiny_models import tiny_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The page's entry, its module on the path."""
    page = PAGE.read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n# my_desk/methods\.py\n(.*?)```", page, flags=re.DOTALL)
    folder = tmp_path / "elsewhere" / "own_methods_of_a_desk"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "methods.py").write_text(code.replace("my_desk", folder.name))
    monkeypatch.syspath_prepend(str(folder.parent))
    return {"method": f"{folder.name}.methods:EXPONENTIAL", "own": {"tau": 0.05}}


def test_a_method_of_a_package_outside_is_planned_and_its_code_is_in_the_key(entry: dict[str, object]) -> None:
    graph = build_graph(resolve("tiny", overrides={"pipeline.mine": {"stage": "preference", "model": "sft", "set": entry}}))
    settings = graph["mine"].settings
    assert isinstance(settings, PreferenceConfig)
    assert settings.own == {"tau": 0.05}
    assert set(STAGE.modules(settings)) == {"own_methods_of_a_desk.methods"}


def test_it_trains_by_its_own_loss(entry: dict[str, object], tmp_path: Path) -> None:
    data, model = write_data(tmp_path / "data"), tiny_model(tmp_path / "model")
    run = job(preference_config(max_steps=3, **entry), model, data, tmp_path / "run")
    train_preference(run)
    # Before the first update the policy is the reference, so the margin is 0 and the loss exp(0).
    assert curve(run, "loss")[0] == pytest.approx(1.0, abs=1e-5)
    assert curve(run, "loss")[-1] < 1.0
    assert curve(run, "margin")[-1] > 0
