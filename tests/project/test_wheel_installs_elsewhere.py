"""The wheel, installed in another place, imports from there and brings its presets and chat templates."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import importlib, sys
from importlib.resources import files
for name in ("flows.cli", "flows.settings.config", "tasks.runtime.worker.__main__", "evaluation.config", "rlhf_core.settings.online", "data_processing.schemas"):
    module = importlib.import_module(name)
    assert module.__file__.startswith(sys.argv[1]), (name, module.__file__)
assert files("deployments.presets").joinpath("quickstart.yaml").is_file()
assert files("rlhf_core.batching.chat_templates").joinpath("qwen3.jinja").is_file()
"""


@pytest.mark.slow
def test_wheel_installed_elsewhere_imports_from_there(tmp_path: Path) -> None:
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("alignflow-*.whl")
    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)
    # -P and a foreign working directory: nothing of the checkout may be found by accident.
    result = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(target)!r})\n{SCRIPT}", str(target)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
