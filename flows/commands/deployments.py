"""Deployments of the flow `align`: a form filled with the values of one preset, perhaps with a schedule.

What the form shows is what runs; whoever gives one value changes that value. Needs a Prefect server that answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from data_processing.errors import ConfigError
from flows.services.environment import ROOT
from flows.services.local import WORK_POOL
from flows.settings.config import PipelineConfig
from flows.settings.presets import known_presets, preset_name, resolve

FLOW = "align"

ENTRYPOINT = "flows/alignment.py:align"
_MOST_AT_ONCE = 1


@dataclass(frozen=True)
class Schedule:
    """When a deployment runs by itself: a cron line, in a time zone of the IANA database."""

    cron: str
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        """Raise `ConfigError` for a line that is no cron, and for an unknown time zone."""
        from prefect.client.schemas.schedules import CronSchedule

        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ConfigError(f"--timezone: got '{self.timezone}'; give a name like Europe/Berlin or UTC") from error
        try:
            CronSchedule(cron=self.cron)
        except ValueError as error:
            raise ConfigError(
                f"--cron: got '{self.cron}'; give five fields, as in \"0 2 * * *\" for every night at two"
            ) from error


def deployment_parameters(preset: str, config: PipelineConfig) -> dict[str, Any]:
    """What the form is filled with: every value of every section."""
    return {"preset": preset, **config.model_dump(mode="json")}


def form_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema the form is drawn from, in each section what is set most first: its own values, and below them nested sections."""
    definitions = schema["definitions"]

    def is_section(field: dict[str, Any]) -> bool:
        named = definitions.get(field.get("$ref", "").rpartition("/")[2], {})
        return bool(named.get("type") == "object")

    ordered = {
        name: definition | {"properties": dict(sorted(fields.items(), key=lambda item: is_section(item[1])))}
        for name, definition in definitions.items()
        if (fields := definition.get("properties"))
    }
    return schema | {"definitions": definitions | ordered}


def deploy(name: str, preset: str, config: PipelineConfig, *, schedule: Schedule | None = None, pool: str = WORK_POOL) -> str:
    """Create or replace the deployment `align/NAME`; returns its id. One run of it at a time, others wait for their turn."""
    from prefect import get_client
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
    from prefect.client.schemas.schedules import CronSchedule

    from flows.alignment import align

    parameters = deployment_parameters(preset, config)
    align.validate_parameters(parameters)
    schedules = [CronSchedule(cron=schedule.cron, timezone=schedule.timezone)] if schedule else []
    with get_client(sync_client=True) as client:
        created = client.create_deployment(
            flow_id=client.create_flow(align),
            name=name,
            description=_description(preset),
            parameters=parameters,
            parameter_openapi_schema=form_schema(align.parameters.model_dump_for_openapi()),
            enforce_parameter_schema=True,
            entrypoint=ENTRYPOINT,
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
            work_pool_name=pool,
            schedules=[DeploymentScheduleCreate(schedule=each, active=True) for each in schedules],
            concurrency_limit=_MOST_AT_ONCE,
            concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
            tags=["alignflow", f"preset:{preset_name(preset)}"],
        )
    return str(created)


def deploy_shipped() -> list[str]:
    """A deployment of each preset that ships; returns their names."""
    presets = list(known_presets())
    for preset in presets:
        deploy(preset, preset, resolve(preset))
    return [f"{FLOW}/{preset}" for preset in presets]


def _description(preset: str) -> str:
    known = known_presets().get(preset)
    return known.line if known else f"Settings of {preset}."
