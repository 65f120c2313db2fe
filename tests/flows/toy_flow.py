"""Run a graph of toy stages through the real flow: `python toy_flow.py [--ray] NODE=STAGE[:INPUT[,INPUT]] ...`."""

from __future__ import annotations

import asyncio
import json
import sys

from data_processing.errors import AlignflowError
from flows import environment
from flows.commands import print_progress
from flows.graph import Graph, Node
from flows.prefect_server import prefect_for_run
from flows.presets import Preset, resolve
from flows.selection import select
from tasks.runtime.home import Home


def graph_of(arguments: list[str]) -> Graph:
    graph = {}
    for argument in arguments:
        name, _, rest = argument.partition("=")
        stage, _, inputs = rest.partition(":")
        named = dict(zip(("first", "second"), filter(None, inputs.split(",")), strict=False))
        graph[name] = Node(name=name, stage=f"toy_stages:{stage.upper()}", section="model", inputs=named)
    return graph


def main(arguments: list[str]) -> None:
    executor = "ray" if "--ray" in arguments else "subprocess"
    overrides = {"runtime.executor": executor, "runtime.poll_interval_s": 0.1, "runtime.stop_grace_s": 2.0}
    selection = select(graph_of([a for a in arguments if a != "--ray"]))
    home = Home.open()
    environment.enter(home)
    environment.quiet_prefect()
    print_progress()
    with prefect_for_run(home) as wait_for_prefect:
        from prefect import flow

        from flows.alignment import run_pipeline

        @flow(name="toy")
        async def toy() -> dict[str, object]:
            return await run_pipeline(resolve(Preset.tiny, overrides=overrides), selection, home)

        wait_for_prefect()
        print(json.dumps(asyncio.run(toy())))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except AlignflowError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
