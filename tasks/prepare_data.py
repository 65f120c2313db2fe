"""The prepare_data stage: sources and the built-in task → the tables every later stage reads."""

from __future__ import annotations

from data_processing.config import DataConfig, SourceKind
from data_processing.libraries import distribution_of, environment_module
from data_processing.prepare import fingerprint, prepare, sources_of
from data_processing.profile import add_profile, near_copies
from tasks.runtime.contract.context import Stage, StageContext


def run(context: StageContext[DataConfig]) -> None:
    """Write the `data` artifact and report its summary, with what its rows are like."""
    summary = prepare(context.config, context.output, context.seed, context.events.progress)
    context.events.progress(100, 100, "looking at the rows: lengths, scripts, near-duplicates")
    profile = add_profile(context.output)
    for warning in (*summary["warnings"], *near_copies(profile)):
        context.events.warn(warning)
    context.events.summary({**summary, "profile": profile})


def modules(config: DataConfig) -> list[str]:
    """The user's modules that make rows: those of environments that are no installed libraries."""
    named = [environment_module(s.path) for _, _, s in sources_of(config) if s.kind is SourceKind.verifiers]
    return [module for module in dict.fromkeys(named) if not distribution_of(module)]


STAGE = Stage(
    name="prepare_data",
    kind="data",
    config=DataConfig,
    run=run,
    libraries=("pyarrow", "datasets", "msgspec"),
    modules=modules,
    fingerprint=fingerprint,
)
