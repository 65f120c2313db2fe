"""Where else a run can be seen. Prefect's flow run, MLflow's run and the report each name the other two; the terminal names both.

Addresses are those of servers that outlive the run; where there is none, names and folders stand instead.
"""

from __future__ import annotations

import asyncio
import time

from flows.running.display import Display
from flows.running.progress import LOG
from flows.running.run_folder import RunFolder
from tasks.runtime.tracking.tracker import Tracker

_POLL_S = 0.2


def mlflow_note(display: Display, folder: RunFolder) -> str:
    """What MLflow shows with its run, as Markdown."""
    prefect = f"[{folder.name}]({display.page})" if display.page else f"flow run `{folder.name}`"
    return f"Prefect: {prefect}\n\nReport: `report.html` under Artifacts\n\nFolder: `{folder.path}`"


async def link(display: Display, tracker: Tracker, folder: RunFolder, *, experiment: str, wait_s: float) -> None:
    """Tell the terminal, Prefect and the run's folder, from which the report is made, where the run is seen.

    MLflow has a page for it as soon as it has taken the run, for which this waits up to `wait_s` seconds; until then its
    server is named.
    """
    ends = time.monotonic() + wait_s
    while tracker.server and not tracker.page and time.monotonic() < ends:
        await asyncio.sleep(_POLL_S)
    mlflow = tracker.page or tracker.server
    links = {"Prefect": display.page, "MLflow": mlflow}
    folder.note(links=links)
    for where, page in links.items():
        if page:
            LOG.info("seen in %s: %s", where, page)
    await display.links(_for_prefect(folder, mlflow, experiment), folder.name)


def _for_prefect(folder: RunFolder, mlflow: str | None, experiment: str) -> str:
    tracked = f"[{folder.name}]({mlflow})" if mlflow else f"run `{folder.name}`"
    return f"MLflow: {tracked}, experiment `{experiment}`\n\nReport, when models are compared: `{folder.report}`\n"
