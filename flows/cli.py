"""The command line `alignflow`. Commands import what they need when they run, so that `--help` answers at once."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

# What says nothing about this program: permissions, a full disk, one that is away.
_OF_THE_DISK = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOTCONN}

app = typer.Typer(
    name="alignflow",
    help="A base model and data to an aligned, evaluated, registered model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
cache = typer.Typer(help="What is cached, and why something was not.", no_args_is_help=True)
app.add_typer(cache, name="cache")
reward = typer.Typer(help="What rewards say, before a run depends on them.", no_args_is_help=True)
app.add_typer(reward, name="reward")

PresetOption = Annotated[
    str, typer.Option("--preset", help="Where settings start from: the name of a preset (alignflow presets), or a YAML file")
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file with sections, laid over the preset")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting, over everything else: online.kl_coef=0.02 (YAML value); repeatable"),
]
FromOption = Annotated[str | None, typer.Option("--from", help="Take everything before this entry or stage from the cache")]
UntilOption = Annotated[str | None, typer.Option("--until", help="Stop after this entry or stage")]
NameOption = Annotated[str | None, typer.Option("--name", help="Name of the run, in its folder, in Prefect and in MLflow")]
NoCheckOption = Annotated[bool, typer.Option("--no-check", help="Do not call reward functions once beforehand")]
ForceOption = Annotated[list[str] | None, typer.Option("--force", help="Run this entry or stage although cached; repeatable")]


@app.command()
def run(
    *,
    preset: PresetOption = "quickstart",
    config: ConfigOption = None,
    set_: SetOption = None,
    from_: FromOption = None,
    until: UntilOption = None,
    force: ForceOption = None,
    name: NameOption = None,
    no_check: NoCheckOption = False,
) -> None:
    """Run the pipeline here, and wait for it."""
    from flows.commands.actions import Asked, run_here

    named = [f"run.name={name}"] if name else []
    run_here(Asked(preset, config, [*(set_ or []), *named], from_, until, force or [], no_check))


@app.command()
def plan(
    *,
    preset: PresetOption = "quickstart",
    config: ConfigOption = None,
    set_: SetOption = None,
    from_: FromOption = None,
    until: UntilOption = None,
    force: ForceOption = None,
    no_check: NoCheckOption = False,
) -> None:
    """Show what would run, what is cached and why, with estimated memory and time. Runs nothing."""
    from flows.commands.actions import Asked, show_plan

    show_plan(Asked(preset, config, set_ or [], from_, until, force or [], no_check))


@app.command()
def graph(
    *,
    preset: PresetOption = "quickstart",
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Show the nodes of a pipeline and what each is made from."""
    from flows.commands.actions import Asked, show_graph

    show_graph(Asked(preset, config, set_ or [], None, None, []))


@app.command()
def adopt(
    node: Annotated[str, typer.Argument(help="Entry, stage or node whose earlier result is to count")],
    *,
    preset: PresetOption = "quickstart",
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Take a node's last result over, although code or libraries have changed since; its lineage says so."""
    from flows.commands.actions import Asked
    from flows.commands.past_runs import adopt_node

    adopt_node(Asked(preset, config, set_ or [], None, node, []))


@app.command()
def presets() -> None:
    """List the presets: those that ship with alignflow, and yours in the home."""
    from flows.commands.actions import show_presets

    show_presets()


@app.command()
def methods() -> None:
    """List the methods that `method` of a stage may be; docs/methods.md says what each reads."""
    from flows.commands.actions import show_methods

    show_methods()


@app.command()
def deploy(
    preset: Annotated[str, typer.Argument(help="The name of a preset, or a YAML file")],
    *,
    name: Annotated[str | None, typer.Option(help="Name of the deployment; default: that of the preset or file")] = None,
    cron: Annotated[str | None, typer.Option(help='When it runs by itself: "0 2 * * *" for every night at two')] = None,
    timezone: Annotated[str, typer.Option(help="Time zone of --cron, for example Europe/Berlin")] = "UTC",
    pool: Annotated[str, typer.Option(help="Prefect work pool that runs it")] = "local",
) -> None:
    """Make a deployment whose form is filled with a preset's values; needs a Prefect server (alignflow up)."""
    from flows.commands.actions import deploy_preset

    deploy_preset(preset, name, cron, timezone, pool)


@app.command()
def up(
    prefect_port: Annotated[int, typer.Option(help="Port of the Prefect server", min=1, max=65535)] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Port of the MLflow server", min=1, max=65535)] = 5000,
    ray_port: Annotated[int, typer.Option(help="Port of the Ray head", min=1, max=65535)] = 6379,
    ray_dashboard_port: Annotated[int, typer.Option(help="Port of Ray's dashboard and job API", min=1, max=65535)] = 8265,
) -> None:
    """Start the local Prefect server, MLflow server, Ray head and worker, and deploy the flow."""
    from flows.commands.actions import start_services
    from flows.services.local import Ports

    start_services(Ports(prefect_port, mlflow_port, ray_port, ray_dashboard_port))


@app.command()
def status() -> None:
    """Show the local services."""
    from flows.commands.actions import show_services

    show_services()


@app.command()
def down() -> None:
    """End the local services: only processes that alignflow started and recorded."""
    from flows.commands.actions import stop_services

    stop_services()


@app.command()
def doctor() -> None:
    """Check this machine, with a fix for everything that is wrong."""
    from flows.commands.actions import show_doctor

    show_doctor()


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="A model by name: smollm2-135m, tiny-random")]) -> None:
    """Fetch or make a model that is asked for by name, once."""
    from flows.commands.actions import fetch_model

    fetch_model(name)


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="Name of a run, or 'latest'")] = "latest",
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser")] = False,
) -> None:
    """Show a run's verdict and where its HTML report is; the report is rebuilt from the store where it is missing."""
    from flows.commands.past_runs import show_report

    show_report(run, open_)


@app.command()
def runs(count: Annotated[int, typer.Option(help="How many, the newest first", min=1)] = 20) -> None:
    """List the runs: how each stands, what it took, what came of it."""
    from flows.commands.runs import show_runs

    show_runs(count)


RunArgument = Annotated[str, typer.Argument(help="Name of a run, how it begins, or 'latest'")]
ModelArgument = Annotated[
    str, typer.Argument(help="An entry of the latest run (ppo), RUN/ENTRY (latest/ppo), a key of cache ls, or a folder")
]


@app.command()
def logs(
    run: RunArgument,
    stage: Annotated[str, typer.Argument(help="Entry, stage or node of that run")],
    *,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on printing until the stage ends")] = False,
) -> None:
    """Print what a stage of a run printed."""
    from flows.commands.runs import show_log

    show_log(run, stage, follow=follow)


@app.command()
def cancel(run: RunArgument) -> None:
    """End a run in order, and wait for it: stages save a checkpoint, and the same command resumes them."""
    from flows.commands.runs import cancel_run

    cancel_run(run)


@app.command()
def show(model: ModelArgument) -> None:
    """Show a model: its folder, its size, what it was made from, what was measured."""
    from flows.commands.models import show_model

    show_model(model)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="As for show, or a folder that is a training checkpoint")],
    folder: Annotated[Path, typer.Argument(help="Folder that is not there yet, or is empty")],
    *,
    dtype: Annotated[str | None, typer.Option(help="fp32 or bf16; default: as it was converted, of a checkpoint fp32")] = None,
    base: Annotated[str | None, typer.Option(help="Of a checkpoint: the model that its training started from")] = None,
    tag: Annotated[str | None, typer.Option(help="Of a DeepSpeed checkpoint: the step; default: the latest")] = None,
) -> None:
    """Copy a model into a folder in Hugging Face layout, from its checkpoint where another precision is asked for."""
    from flows.commands.models import Exported, export_model

    export_model(model, folder, Exported(dtype, base, tag))


@app.command()
def chat(
    model: ModelArgument,
    *,
    prompt: Annotated[str | None, typer.Option(help="Answer this and leave")] = None,
    system: Annotated[str | None, typer.Option(help="System message")] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token", min=0)] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens", min=1)] = 512,
    max_length_tokens: Annotated[int, typer.Option(help="Longest conversation, in tokens", min=2)] = 4096,
    gpus: Annotated[float, typer.Option(help="GPUs to use; 0: the CPU", min=0)] = 0.0,
) -> None:
    """Talk with a model; answers appear as they are drawn."""
    from flows.commands.chat import Manner, chat_with

    chat_with(model, prompt, Manner(system, temperature, max_new_tokens, max_length_tokens, gpus))


@app.command("serve-rm")
def serve_rm(
    model: ModelArgument,
    *,
    host: Annotated[str, typer.Option(help="Address to listen at; one that other machines reach needs --key-from")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any free one", min=0, max=65535)] = 8765,
    key_from: Annotated[str | None, typer.Option(help="Environment variable with the key that clients must send")] = None,
    dtype: Annotated[
        Literal["auto", "bf16", "fp32"], typer.Option(help="Precision; auto: what the device computes natively")
    ] = "auto",
    batch_tokens: Annotated[int, typer.Option(help="Most tokens in one forward pass", min=16)] = 8192,
    max_length_tokens: Annotated[int, typer.Option(help="Longest prompt and response, in tokens", min=2)] = 8192,
    gpus: Annotated[float, typer.Option(help="GPUs to use; 0: the CPU", min=0)] = 0.0,
    trust_remote_code: Annotated[bool, typer.Option(help="Run Python code that comes with the model folder")] = False,
) -> None:
    """Serve a reward model over HTTP, for kind `http` of online.rewards and for other trainers."""
    from flows.commands.serve_rm import Serving, serve_reward_model

    chosen = None if dtype == "auto" else dtype
    serve_reward_model(model, Serving(host, port, key_from, chosen, batch_tokens, max_length_tokens, gpus, trust_remote_code))


@reward.command("try")
def try_(
    rewards: Annotated[str, typer.Argument(help="YAML file with rewards or online.rewards, or a function: module:name")],
    *,
    on: Annotated[Path, typer.Option(help="File, folder or table with answers, in any form that data takes")],
    rows: Annotated[int, typer.Option(help="How many rows, the first ones", min=1)] = 16,
    scorer: Annotated[
        list[str] | None, typer.Option(help="Folder of a model that rewards ask: reward_model=DIR, generator=DIR; repeatable")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder whose tokens lengths count; default: a scorer's, else words")
    ] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="Host that a service may be asked at; repeatable")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write a row an answer: .parquet or .jsonl")] = None,
) -> None:
    """Score answers that are there already: spread, time, failures, and what each reward goes with. Trains nothing."""
    from flows.commands.try_reward import Asked, read_scorers, try_reward

    try_reward(Asked(rewards, on, rows, read_scorers(scorer or []), tokenizer, allow_host or [], out))


@cache.command()
def why(
    run: Annotated[str, typer.Argument(help="Name of a run, or 'latest'")],
    stage: Annotated[str, typer.Argument(help="Stage or node of that run")],
) -> None:
    """Name the fields in which a stage's key differs from the run before."""
    from flows.commands.past_runs import show_why

    show_why(run, stage)


@cache.command("ls")
def list_artifacts() -> None:
    """List the artifacts in the store."""
    from flows.commands.past_runs import show_artifacts

    show_artifacts()


def main() -> None:
    """Entry point: a wrong input is one clear message on stderr and the exit code of its error, without a traceback."""
    from data_processing.errors import AlignflowError

    try:
        app()
    except AlignflowError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        where = error.filename2 or error.filename or "no file named"
        print(
            f"error: {where}: {error.strerror}; see that its disk is there, has room, and that you may write to it",
            file=sys.stderr,
        )
        sys.exit(AlignflowError.exit_code)


if __name__ == "__main__":
    main()
