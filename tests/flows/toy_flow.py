"""Run a graph of toy stages through the real flow: `python toy_flow.py [--ray] [--force=NODE] NODE=STAGE[:INPUT[,INPUT]] ...`."""

from __future__ import annotations

import json
import sys

from data_processing.errors import AlignflowError
from flows.commands.actions import print_progress
from flows.graph.nodes import Graph, Node
from flows.graph.selection import Selection, select
from flows.running.locally import FlowFunction, run_locally
from flows.running.prepared import handed_over
from flows.services import environment
from flows.settings.config import PipelineConfig
from flows.settings.presets import resolve
from rlhf_core.settings.models import BaseModelConfig
from tasks.runtime.contract.home import Home


def graph_of(arguments: list[str]) -> Graph:
    graph = {}
    for argument in arguments:
        name, _, rest = argument.partition("=")
        stage, _, inputs = rest.partition(":")
        named = dict(zip(("first", "second"), filter(None, inputs.split(",")), strict=False))
        graph[name] = Node(name=name, stage=f"toy_stages:{stage.upper()}", settings=BaseModelConfig(), inputs=named, seed=17)
    return graph


def load_flow() -> FlowFunction:
    from prefect import flow

    from flows.alignment import InPrefect

    @flow(name="toy")
    async def toy(arguments: list[str]) -> dict[str, object]:
        prepared = handed_over()
        assert prepared
        return await prepared.run(InPrefect(prepared.home), "tiny")

    return toy


def read(arguments: list[str]) -> tuple[PipelineConfig, Selection, Home]:
    executor = "ray" if "--ray" in arguments else "subprocess"
    forced = [argument.removeprefix("--force=") for argument in arguments if argument.startswith("--force=")]
    config = resolve("tiny", overrides={"runtime.executor": executor, "runtime.stop_grace_s": 2.0})
    graph = graph_of([argument for argument in arguments if not argument.startswith("--")])
    return config, select(graph, force=forced), Home.open()


def main(arguments: list[str]) -> None:
    environment.enter(Home.open())
    environment.quiet_prefect()
    config, selection, home = read(arguments)
    print_progress()
    print(json.dumps(run_locally(config, selection, home, {"arguments": arguments}, load_flow)))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except AlignflowError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
