"""Run every stage of the preset `tiny` on a tiny random model of each architecture, and write what came of it into docs/models.md.

    python benchmarks/whole_pipelines.py [--only NAME ...]

The stages are those of any run, one after the other in this process, with one step of training each; actors of `online` are
processes of Ray. Rows of architectures that are not named stay as they are on the page.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.architectures import PAGE, rows_on, table, with_table  # noqa: E402
from data_processing.errors import ConfigError  # noqa: E402
from flows.graph.build import build_graph  # noqa: E402
from flows.graph.nodes import Node  # noqa: E402
from flows.settings.presets import resolve  # noqa: E402
from rlhf_core.events import EventLog  # noqa: E402
from rlhf_core.models.gate import examine  # noqa: E402
from rlhf_core.settings.models import BaseModelConfig  # noqa: E402
from tasks.runtime.contract.context import ArtifactRef, StageContext  # noqa: E402
from tasks.runtime.contract.registry import load_stage  # noqa: E402
from tests.architectures import ARCHITECTURES, architecture  # noqa: E402

COMMAND = "python benchmarks/whole_pipelines.py"
COLUMNS = ("model type", "the whole pipeline", "stages done")
POSITIONS = 2048  # what the preset's lengths need
ONE_STEP = {"sft.max_steps": 1, "reward_model.max_steps": 1, "preference.max_steps": 1}


def main() -> None:
    """Run, and write the table after each architecture."""
    parser = argparse.ArgumentParser(description="Write the table of whole pipelines in docs/models.md")
    parser.add_argument("--only", action="append", choices=list(ARCHITECTURES), help="an architecture to run; without any all")
    parser.add_argument("--page", type=Path, default=PAGE, help="a page with the two markers of the table")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only or ARCHITECTURES:
            began = time.monotonic()
            row = of_pipeline(name, Path(folder))
            print(*row, f"{time.monotonic() - began:.0f} s", sep="\t", flush=True)
            page = arguments.page.read_text(encoding="utf-8")
            rows = {old[0]: old for old in rows_on(page, COMMAND)} | {name: row}
            ordered = [rows[known] for known in ARCHITECTURES if known in rows]
            arguments.page.write_text(with_table(page, table([COLUMNS, *ordered]), COMMAND), encoding="utf-8")


def of_pipeline(name: str, folder: Path) -> tuple[str, str, str]:
    """The row of one architecture: works, refused before anything starts, or what failed; and the stages that were done."""
    positions = dict.fromkeys({"max_position_embeddings", *(["n_positions"] if name == "gpt2" else [])}, POSITIONS)
    model = architecture(folder, name, **positions)
    graph = build_graph(resolve("tiny", overrides={"model.path": str(model)} | ONE_STEP))
    try:
        examine(model, BaseModelConfig(path=str(model)), scores=True)
    except ConfigError as error:
        return name, f"refused at the gate: {shortly(error, model)}", f"0 of {len(graph)}"
    done: dict[str, Path] = {}
    for node in graph.values():
        try:
            done[node.name] = result_of(node, done, folder / f"{name} run" / node.name)
        except Exception as error:  # whatever it is, the gate let it through
            return (
                name,
                f"**fails** in {node.name}: {type(error).__name__}: {shortly(error, model)}",
                f"{len(done)} of {len(graph)}",
            )
    return name, "works", f"{len(done)} of {len(graph)}"


def shortly(error: Exception, model: Path) -> str:
    """The first line of an error, without the place of the model."""
    return str(error).replace(f"model folder {model}: ", "").splitlines()[0]


def result_of(node: Node, done: Mapping[str, Path], folder: Path) -> Path:
    """The artifact of a node, made in this process below `folder` from the artifacts that are done."""
    output, resume = folder / "output", folder / "resume"
    output.mkdir(parents=True)
    resume.mkdir()
    stage = load_stage(node.stage)
    inputs = {name: done[made_by] for name, made_by in node.inputs.items()}
    refs = {
        name: ArtifactRef(kind=stage.inputs[name].role, key=made_by, uri=str(done[made_by]), sha256="", producer=made_by)
        for name, made_by in node.inputs.items()
        if name in stage.inputs
    }
    stage.run(StageContext(node.settings, inputs, refs, output, resume, node.seed, 1, EventLog(folder / "events.jsonl")))
    return output


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
