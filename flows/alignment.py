"""The flow `align`: base model and data to an aligned, evaluated, registered model, shown in Prefect.

The story of one run is `flows.running.pipeline`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from httpx import HTTPError
from prefect import flow, get_client, get_run_logger
from prefect.artifacts import acreate_markdown_artifact
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_API_URL
from prefect.utilities.urls import url_for
from pydantic import JsonValue

from data_processing.config import DataConfig
from data_processing.errors import ConfigError
from evaluation.config import CompareConfig, EvaluateConfig
from flows.graph.build import build_graph, pinned
from flows.graph.selection import select
from flows.running.code import native_there
from flows.running.prepared import handed_over, prepare
from flows.running.progress import LOG
from flows.services.run_processes import serves_one_run
from flows.services.told_later import server_name
from flows.settings.config import RunConfig
from flows.settings.entries import Entries
from flows.settings.presets import DEFAULT, resolve
from rlhf_core.settings.models import BaseModelConfig, ConvertConfig, MergeConfig
from rlhf_core.settings.online import OnlineConfig
from rlhf_core.settings.own_answers import IterativeConfig, SampleConfig
from rlhf_core.settings.preference import PreferenceConfig
from rlhf_core.settings.supervised import DistillConfig, RewardModelConfig, SftConfig
from rlhf_core.settings.vr_cli import VrCliBaselineConfig
from tasks.runtime.contract.config import RuntimeConfig
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.request import StageObserver, StageRequest
from tasks.runtime.execution.prefect_task import run_node
from tasks.runtime.execution.start import Runtime
from tasks.runtime.tracking.tracker import Tracker


class InPrefect:
    """The `Display` of a run inside a Prefect flow run: nodes are task runs, links and verdict are artifacts.

    A server that goes away meanwhile stops no run; it shows less.
    """

    def __init__(self, home: Home) -> None:
        self._home = home

    @property
    def run_id(self) -> str:
        """The flow run's id."""
        return str(flow_run.id)

    @property
    def page(self) -> str | None:
        """The flow run's page; a server that ends with this run has no pages."""
        return None if serves_one_run(self._home, PREFECT_API_URL.value()) else url_for("flow-run", obj_id=self.run_id)

    @property
    def server(self) -> str:
        """The server of this flow run."""
        return server_name(self._home, PREFECT_API_URL.value())

    async def begin(self, run: str, tags: Sequence[str]) -> None:
        """The flow run is called as the run's folder is."""
        with _said_if_not_shown("the name of this run"):
            async with get_client() as client:
                await client.update_flow_run(UUID(self.run_id), name=run, tags=list(dict.fromkeys([*flow_run.tags, *tags])))

    async def node(
        self,
        request: StageRequest,
        runtime: Runtime,
        tracker: Tracker,
        upstream: Mapping[str, dict[str, Any]],
        observer: StageObserver,
    ) -> dict[str, Any]:
        """The node as a task run, in state `Cached` where its result was there."""
        return await run_node(request, runtime, tracker, dict(upstream), observer)

    async def links(self, text: str, run: str) -> None:
        """A Markdown artifact."""
        await acreate_markdown_artifact(text, key="links", description=f"Where else {run} can be seen")

    async def verdict(self, text: str, run: str) -> None:
        """A Markdown artifact, and the same in the log, for whoever watches the run."""
        get_run_logger().info("\n%s", text)
        with _said_if_not_shown("the verdict"):
            await acreate_markdown_artifact(text, key="verdict", description=f"Verdict of {run}")


@contextmanager
def _said_if_not_shown(what: str) -> Iterator[None]:
    try:
        yield
    except HTTPError as error:
        LOG.warning("Prefect does not show %s: %s", what, error)


@flow(name="align", persist_result=False, retries=0)
async def align(
    *,
    preset: str = DEFAULT,
    run: RunConfig = RunConfig(),  # noqa: B008  # frozen, and Prefect draws the form from it
    pipeline: Entries = {},  # noqa: B006
    model: BaseModelConfig = BaseModelConfig(),  # noqa: B008
    data: DataConfig = DataConfig(),  # noqa: B008
    sft: SftConfig = SftConfig(),  # noqa: B008
    reward_model: RewardModelConfig = RewardModelConfig(),  # noqa: B008
    preference: PreferenceConfig = PreferenceConfig(),  # noqa: B008
    online: OnlineConfig = OnlineConfig(),  # noqa: B008
    sample: SampleConfig = SampleConfig(),  # noqa: B008
    iterative: IterativeConfig = IterativeConfig(),  # noqa: B008
    distill: DistillConfig = DistillConfig(),  # noqa: B008
    merge: MergeConfig = MergeConfig(),  # noqa: B008
    vr_cli_baseline: VrCliBaselineConfig = VrCliBaselineConfig(),  # noqa: B008
    convert: ConvertConfig = ConvertConfig(),  # noqa: B008
    evaluate: EvaluateConfig = EvaluateConfig(),  # noqa: B008
    compare: CompareConfig = CompareConfig(),  # noqa: B008
    runtime: RuntimeConfig = RuntimeConfig(),  # noqa: B008
    overrides: dict[str, JsonValue] = {},  # noqa: B006
    from_stage: str | None = None,
    until_stage: str | None = None,
    force: list[str] = [],  # noqa: B006
) -> dict[str, Any]:
    """Align a model; returns the run's name, its folder, the report and the challenger.

    Args:
        preset: Where settings start from: the name of a preset, or the path of a file. A deployment has one of its own.
        run: The run as a whole. Here and in every section, fields that are given go over the preset.
        pipeline: What is trained from what, by name; where it is given, it is the whole pipeline.
        model: The model to start from.
        data: What is learned from.
        sft: Supervised fine-tuning.
        reward_model: The scorer.
        preference: Direct preference optimisation.
        online: Online training.
        sample: Tables from a model's own answers.
        iterative: Preference training on own answers.
        distill: Learning from a teacher's distributions.
        merge: Several models to one, without training.
        vr_cli_baseline: What completions are worth without a plan (VR-CLI).
        convert: Checkpoints to Hugging Face folders.
        evaluate: Measuring each model.
        compare: Setting the models against each other.
        runtime: How stages are executed; changes no result.
        overrides: Single values by dotted name, over everything else, for example {"online.kl_coef": 0.02}.
        from_stage: Take everything before this entry or stage from the cache.
        until_stage: Stop after this entry or stage.
        force: Entries or stages to run although their result is cached.
    """
    sections = {
        **{"run": run, "model": model, "data": data, "sft": sft, "reward_model": reward_model, "preference": preference},
        **{"online": online, "sample": sample, "iterative": iterative, "distill": distill, "merge": merge},
        **{"vr_cli_baseline": vr_cli_baseline, "convert": convert, "evaluate": evaluate, "compare": compare, "runtime": runtime},
    }
    home = Home.open()
    if prepared := handed_over():
        return await prepared.run(InPrefect(home), preset)
    deployed = await _of_deployment()
    if preset != deployed.get("preset", preset):
        raise ConfigError(
            f"preset: got '{preset}'; this deployment has the values of '{deployed['preset']}', and they stand in every field: "
            f"run the deployment of '{preset}', or make one with alignflow deploy {preset}"
        )
    below = {name: value for name, value in deployed.items() if name in sections}
    config = resolve(preset, sections, overrides, pipeline=pipeline, below=below, home_presets=home.presets)
    selection = select(pinned(build_graph(config, native_there(config, home))), from_stage, until_stage, force)
    return await prepare(config, selection, home).run(InPrefect(home), preset)


async def _of_deployment() -> dict[str, Any]:
    """The values that the form of this run's deployment is filled with; none for a run without one."""
    if not deployment.id:
        return {}
    async with get_client() as client:
        return dict((await client.read_deployment(UUID(deployment.id))).parameters)
