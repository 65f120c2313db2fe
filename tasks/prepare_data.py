"""The prepare_data stage: sources and the built-in task → the tables every later stage reads."""

from __future__ import annotations

from data_processing.config import DataConfig
from data_processing.prepare import fingerprint, prepare
from tasks.runtime.contract.context import Stage, StageContext


def run(context: StageContext[DataConfig]) -> None:
    """Write the `data` artifact and report its summary."""
    summary = prepare(context.config, context.output, context.seed)
    for warning in summary["warnings"]:
        context.events.warn(warning)
    context.events.summary(summary)


STAGE = Stage(
    name="prepare_data",
    kind="data",
    config=DataConfig,
    run=run,
    libraries=("pyarrow", "datasets", "msgspec"),
    fingerprint=fingerprint,
)
