"""The command line: each verb parses, calls one function and prints. Only click and the standard library are imported
here; a verb imports what it needs, so that `--help` is instant and nothing short of training imports torch."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import click

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
RUNS = click.option("--runs", metavar="DIR", help="Where run folders are ($SFT_DIST_RUNS, else ./runs).")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
ALLOW = click.option(
    "--allow", multiple=True, metavar="FINDING", help="An error of `check` that is known and accepted (repeatable)."
)
CLUSTER = click.option(
    "--cluster", metavar="NAME", envvar="SFT_DIST_CLUSTER", help="Cluster's name or file; local: this machine."
)
PROCESSES = click.option("--processes", type=click.IntRange(1), metavar="N", help="Processes on this machine.")


def main() -> None:
    """Entry point. A user's mistake ends with exit code 2 and no traceback, anything else with 1 and its traceback."""
    _start_fast()
    try:
        cli(prog_name="sft-dist")
    except Exception as error:
        from sft_dist.recipe.errors import UserError

        if not isinstance(error, UserError):
            raise
        if "--json" in sys.argv:
            click.echo(error.to_json())
        else:
            click.echo(error.render(), err=True)
        sys.exit(2)


def _start_fast() -> None:
    """Before anything else is imported (docs/decisions/0005-start-up.md)."""
    gc.set_threshold(200_000)  # importing makes many objects that stay; there is no garbage to look for among them
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


class _StrategyOption(click.Option):
    """Its help names the strategies, which are read only when it is shown."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        from sft_dist.recipe.strategies import STRATEGIES

        self.help = (self.help or "").format(names=", ".join(STRATEGIES))
        return super().get_help_record(ctx)


class _Ordered(click.Group):
    """Lists the verbs in the order in which they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from sft_dist import __version__

        click.echo(f"sft-dist {__version__}")
        ctx.exit()


@click.group(cls=_Ordered, context_settings=SETTINGS)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def cli() -> None:
    """Recipes in, trained and judged models out.

    \b
    sft-dist check recipes/text-classification/quickstart.yaml    what is wrong with the data
    sft-dist plan recipes/text-classification/quickstart.yaml     what would happen
    sft-dist run  recipes/text-classification/quickstart.yaml     train
    sft-dist eval recipes/text-classification/quickstart.yaml     judge every checkpoint, export the best
    sft-dist submit recipes/text-classification/quickstart.yaml --cluster NAME     the same on a Slurm cluster
    """


@cli.command()
@click.argument("task")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write instead of standard output.")
def init(task: str, output: Path | None) -> None:
    """Print a commented starter recipe for a TASK.

    Example: sft-dist init text-classification -o my.yaml
    """
    from launch.starters import starter

    text = starter(task)
    if output is None:
        click.echo(text, nl=False)
        return
    from sft_dist.recipe.errors import UserError

    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{output} exists already") from None
    except OSError as error:
        raise UserError(f"{output}: {error.strerror}") from None
    click.echo(f"wrote {output}; next: sft-dist plan {output}", err=True)


@cli.command()
def schema() -> None:
    """Print the recipe's JSON Schema, for editors.

    Example: sft-dist schema > recipe.schema.json
    """
    from launch.starters import json_schema

    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


@cli.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@ALLOW
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the page goes (RUNS/NAME/check.html).",
)
@click.option(
    "--preview",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="N examples on the page, before and after augmentation.",
)
@click.option("--time", "timed", is_flag=True, help="Measure a few steps here, to estimate the time.")
@RUNS
@AS_JSON
def check(
    recipe: str,
    overrides: tuple[str, ...],
    allow: tuple[str, ...],
    page: Path | None,
    preview: int,
    timed: bool,
    runs: str | None,
    as_json: bool,
) -> None:
    """Look at a RECIPE's data before they cost GPUs: labels, leaks, duplicates, unreadable files, lengths.

    Exit code 0: nothing or only warnings, 1: errors, which also keep `submit` from sending it.

    Example: sft-dist check my.yaml --preview 10
    """
    from launch.check import run_check
    from launch.run_state import runs_root

    sys.exit(run_check(recipe, overrides, runs_root(runs), allow, page, preview, timed, as_json))


@cli.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@PROCESSES
@click.option("--cluster", metavar="NAME", help="Plan for a Slurm cluster, and print the job script.")
@click.option("--script", "script_only", is_flag=True, help="Print nothing but the (first) job script.")
@click.option("--diff", is_flag=True, help="Which runs are missing, waiting, running, done.")
@RUNS
@AS_JSON
def plan(
    recipe: str,
    overrides: tuple[str, ...],
    processes: int | None,
    cluster: str | None,
    script_only: bool,
    diff: bool,
    runs: str | None,
    as_json: bool,
) -> None:
    """Show exactly what would happen, without doing it.

    Example: sft-dist plan my.yaml train.lr=1e-4 --processes 1
    """
    from launch.planning import prepare, with_states
    from launch.run_state import runs_root

    where = _cluster(cluster)
    prepared = prepare(recipe, overrides, runs_root(runs), processes, cluster=where)
    if diff:
        from launch.slurm.divide import divide
        from launch.slurm.queue import read_queue
        from launch.slurm.render import describe_states, states_json

        by_state = divide(prepared, read_queue() if where else {})
        click.echo(json.dumps(states_json(by_state), indent=2) if as_json else describe_states(by_state))
        return
    if as_json:
        click.echo(json.dumps([one.plan.to_json() for one in prepared], indent=2, ensure_ascii=False))
        return
    from launch.render import plans

    if where is None:
        if script_only:
            raise click.UsageError("--script prints a cluster's job script; add --cluster NAME")
        click.echo(plans(with_states(prepared)))
        return
    from launch.slurm.render import describe_requests
    from launch.slurm.submit import check_folders, script_of

    check_folders(prepared, where)
    if not script_only:
        click.echo(plans(with_states(prepared)))
        click.echo(describe_requests(prepared, where))
        click.echo(f"\n{prepared[0].plan.folder}/job.sbatch:\n")
    click.echo(script_of(prepared[0], where), nl=False)


@cli.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@PROCESSES
@click.option(
    "--debug", is_flag=True, help="Train in this very process (with --processes 1), so that breakpoints work."
)
@click.option("--fresh", is_flag=True, help="Start over in a new folder beside the old one.")
@RUNS
@click.option("-y", "--yes", is_flag=True, help="Do not ask before starting many runs.")
def run(
    recipe: str,
    overrides: tuple[str, ...],
    processes: int | None,
    debug: bool,
    fresh: bool,
    runs: str | None,
    yes: bool,
) -> None:
    """Train all runs of a RECIPE here, in turn.

    Finished runs are skipped, unfinished ones go on. The first Ctrl-C saves and stops, the second ends at once.

    Example: sft-dist run my.yaml train.epochs=1
    """
    from launch.planning import prepare
    from launch.run import MANY_RUNS, run_all, run_in_this_process
    from launch.run_state import runs_root

    prepared = prepare(recipe, overrides, runs_root(runs), processes, fresh)
    if len(prepared) > MANY_RUNS and not yes:
        click.confirm(f"{len(prepared):,} runs, one after another. Start?", abort=True, err=True)
    if debug:
        if len(prepared) > 1:
            raise click.UsageError(f"--debug trains one run, and the recipe stands for {len(prepared)}")
        sys.exit(run_in_this_process(prepared[0]))
    from launch.local.runner import Local

    sys.exit(run_all(prepared, Local()))


@cli.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@CLUSTER
@click.option("--max-parallel", type=click.IntRange(1), metavar="N", help="Most runs of a sweep at a time.")
@click.option(
    "--eval/--no-eval", "evaluate", default=True, help="Judge the checkpoints afterwards, as a job of its own."
)
@click.option(
    "--fresh", is_flag=True, help="Start over in new folders beside the old ones, with the source as it is now."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be sent.")
@click.option(
    "--check/--no-check", "checked", default=True, help="Look at the data first; errors in them keep it here."
)
@ALLOW
@PROCESSES
@RUNS
def submit(
    recipe: str,
    overrides: tuple[str, ...],
    cluster: str | None,
    max_parallel: int | None,
    evaluate: bool,
    fresh: bool,
    dry_run: bool,
    checked: bool,
    allow: tuple[str, ...],
    processes: int | None,
    runs: str | None,
) -> None:
    """Send all runs of a RECIPE (or a run folder) to a Slurm cluster, as one job or one job array.

    Finished runs and those with a job in the queue are left alone, so that sending twice sends nothing new.

    Example: sft-dist submit my.yaml --cluster my-cluster --max-parallel 8
    """
    from launch.planning import prepare
    from launch.run_state import runs_root

    if not cluster:
        from launch.slurm.clusters import known_clusters

        raise click.UsageError(f"--cluster NAME is missing; known: local, {', '.join(known_clusters())}")
    where = _cluster(cluster)
    prepared = prepare(recipe, overrides, runs_root(runs), processes, fresh, cluster=where)
    if checked and not dry_run:
        from launch.check import gate

        for warning in gate(prepared, allow):
            click.echo(f"warning: {warning}", err=True)
    if where is None:
        from launch.run import submit_here

        sys.exit(submit_here(prepared, evaluate, dry_run))
    from launch.slurm.divide import divide, plan_jobs
    from launch.slurm.queue import read_queue
    from launch.slurm.render import describe_dry_run, describe_submission
    from launch.slurm.submit import submit as send

    if dry_run:
        queue = read_queue()
        by_state = divide(prepared, queue)
        click.echo(describe_dry_run(by_state, plan_jobs(prepared, by_state, queue, where, evaluate), max_parallel))
        return
    click.echo(describe_submission(send(prepared, where, max_parallel, evaluate), where))


def _cluster(name: str | None) -> Any:
    """The cluster, or None for this machine."""
    if name in (None, "", "local"):
        return None
    from launch.slurm.clusters import load_cluster  # after the question: a plan for this machine does not wait for it

    return load_cluster(str(name))


@cli.group("cluster", cls=_Ordered)
def clusters() -> None:
    """Cluster files: which there are, what they say, a first draft of a new one.

    Example: sft-dist cluster list
    """


@clusters.command("list")
@AS_JSON
def cluster_list(as_json: bool) -> None:
    """List the clusters that `--cluster` knows by name.

    Example: sft-dist cluster list
    """
    from launch.slurm.clusters import known_clusters

    known = known_clusters()
    if as_json:
        click.echo(json.dumps({name: str(file) for name, file in known.items()}, indent=2))
        return
    for name, file in {"local": "this machine", **known}.items():
        click.echo(f"{name:<20} {file}")


@clusters.command("show")
@click.argument("name")
@AS_JSON
def cluster_show(name: str, as_json: bool) -> None:
    """Check a cluster's file, and print it with every default filled in.

    Example: sft-dist cluster show devcluster
    """
    import yaml

    from launch.slurm.clusters import find_cluster, read_cluster

    file = find_cluster(name)
    found = read_cluster(file).model_dump()
    click.echo(
        json.dumps(found, indent=2) if as_json else f"# {file}\n{yaml.safe_dump(found, sort_keys=False)}", nl=as_json
    )


@clusters.command("probe")
@click.option("--partition", metavar="NAME", help="Of which partition (the default one).")
def cluster_probe(partition: str | None) -> None:
    """Draft a cluster file from what Slurm says about itself here.

    Example: sft-dist cluster probe > ~/.config/sft-dist/clusters/mine.yaml
    """
    from launch.slurm.probe import draft, probe

    click.echo(draft(probe(partition)), nl=False)


@cli.command()
@click.argument("run")
@PROCESSES
@click.option("--strategy", cls=_StrategyOption, metavar="NAME", help="Resume with another strategy: {names}.")
@RUNS
def resume(run: str, processes: int | None, strategy: str | None, runs: str | None) -> None:
    """Go on with a RUN (folder, id, or beginning of an id) after its newest checkpoint, here and with the same results also
    on another number of processes or with another strategy.

    Example: sft-dist resume runs/my/0a1b2c3d4e --processes 4 --strategy fsdp2
    """
    from launch.local.runner import Local
    from launch.planning import prepare_folder
    from launch.run import run_all
    from launch.run_state import find_run, runs_root

    sys.exit(run_all([prepare_folder(find_run(run, runs_root(runs)), processes, strategy)], Local()))


@cli.command()
@click.argument("targets", nargs=-1, metavar="[RECIPE_OR_FOLDER]...")
@click.option("-w", "--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option("--every", type=click.IntRange(5), default=30, metavar="SECONDS", help="How often (30).")
@RUNS
@AS_JSON
def status(targets: tuple[str, ...], watch: bool, every: int, runs: str | None, as_json: bool) -> None:
    """Show how runs are doing; all of them without arguments.

    Slurm is asked only about runs that were submitted: one squeue, and one sacct when a job has left the queue.

    Example: sft-dist status my.yaml --watch
    """
    import time

    from launch.render import states
    from launch.slurm.queue import query_states

    while True:
        found, answer, lines = query_states(targets, runs)
        if as_json:
            click.echo(json.dumps([one.to_json() for one in found], indent=2, ensure_ascii=False))
        else:
            if watch and sys.stdout.isatty():
                click.clear()
            click.echo(states(found) if found else "no runs yet")
            for line in (*lines, answer.summary()):
                if line:
                    click.echo(line)
        if not watch:
            return
        try:
            time.sleep(every)
        except KeyboardInterrupt:  # as the help says
            return


@cli.command()
@click.argument("run")
@click.option("-f", "--follow", is_flag=True, help="Go on printing until the run has ended, its later attempts too.")
@click.option("--rank", type=click.IntRange(0), metavar="N", help="One rank's own log.")
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="An earlier start of the run (the last one).")
@RUNS
def logs(run: str, follow: bool, rank: int | None, attempt: int | None, runs: str | None) -> None:
    """Print what a RUN printed.

    Example: sft-dist logs 0a1b -f
    """
    from launch import logs as log
    from launch.run_state import find_run, runs_root
    from sft_dist.run.folder import RunFolder

    folder = RunFolder(find_run(run, runs_root(runs)))
    with contextlib.suppress(KeyboardInterrupt):  # the way to stop following
        if follow and attempt is None:
            log.follow(folder, rank)
        else:
            log.show(folder, log.log_file(folder, attempt, rank), follow)


@cli.command()
@click.argument("targets", nargs=-1, required=True, metavar="RECIPE_OR_RUN_OR_PATTERN...")
@click.option("--now", "at_once", is_flag=True, help="End running jobs at once instead of letting them save.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@RUNS
def cancel(targets: tuple[str, ...], at_once: bool, yes: bool, runs: str | None) -> None:
    """Take runs off the cluster: waiting jobs go, running ones save a checkpoint and leave.

    Example: sft-dist cancel 'my-sweep/*'
    """
    from launch.run_state import runs_root
    from launch.slurm.cancel import cancel as cancel_jobs
    from launch.slurm.cancel import plan_cancellation

    cancellation = plan_cancellation(targets, runs_root(runs))
    if not cancellation.num_jobs:
        click.echo("none of these runs has a job in the queue")
        return
    running = f"{len(cancellation.running)} running ({'ended at once' if at_once else 'saved first'})"
    evaluations = f", {len(cancellation.evaluations)} evaluation" if cancellation.evaluations else ""
    click.echo(
        f"{len(cancellation.folders)} runs: {len(cancellation.pending)} waiting, {running}{evaluations}", err=True
    )
    if not yes:
        click.confirm(f"Cancel {cancellation.num_jobs} jobs?", abort=True, err=True)
    cancel_jobs(cancellation, at_once)


@cli.command()
@click.argument("run")
@click.option("--wait", default=300.0, metavar="SECONDS", help="How long to wait for the checkpoint (300).")
@RUNS
def stop(run: str, wait: float, runs: str | None) -> None:
    """Let a RUN save a checkpoint and leave.

    Example: sft-dist stop 0a1b
    """
    from launch.run import stop as stop_run
    from launch.run_state import find_run, runs_root
    from sft_dist.run.folder import RunFolder

    end = stop_run(RunFolder(find_run(run, runs_root(runs))), wait)
    click.echo(f"{end.name}/{end.id} {end.state} at step {end.step}/{end.total_steps or '?'}")
    sys.exit(1 if end.state == "running" else 0)


@cli.command("eval")
@click.argument("targets", nargs=-1, required=True, metavar="RECIPE_OR_FOLDER... [KEY=VALUE]...")
@click.option(
    "--require", "required", multiple=True, metavar="SCORE=NUMBER", help="Fail if the winner's test score is worse."
)
@click.option("--force", is_flag=True, help="Score again what has been scored.")
@RUNS
@AS_JSON
def evaluate(targets: tuple[str, ...], required: tuple[str, ...], force: bool, runs: str | None, as_json: bool) -> None:
    """Score every checkpoint, choose on validation, test the winner once, export it.

    Example: sft-dist eval my.yaml --require accuracy=0.75
    """
    from launch import evaluate as judge
    from launch.run_state import runs_root

    bounds = [judge.requirement(text) for text in required]
    folders, board_in = judge.choose_folders(targets, runs_root(runs))
    if code := judge.sweep(folders, board_in, force):
        sys.exit(code)
    board = judge.read_leaderboard(board_in)
    click.echo(json.dumps(board, indent=2, ensure_ascii=False) if as_json else judge.leaderboard_text(board_in))
    missed = judge.shortfall(board, bounds)
    for line in missed:
        click.echo(line, err=True)
    sys.exit(1 if missed else 0)


@cli.command()
@click.argument("run")
@click.option("--step", type=click.IntRange(1), metavar="N", help="Which checkpoint (the sweep's winner).")
@click.option("--to", "target", type=click.Path(path_type=Path), metavar="DIR", help="Folder to write (RUN/export).")
@click.option("--form", type=click.Choice(["merged", "adapter"]), help="LoRA weights in the base, or apart.")
@RUNS
def export(run: str, step: int | None, target: Path | None, form: str | None, runs: str | None) -> None:
    """Write a checkpoint of a RUN as a plain Hugging Face folder.

    Example: sft-dist export 0a1b --to my-model
    """
    from launch.run_state import find_run, runs_root
    from launch.subprocesses import run_module

    options: list[tuple[str, Any]] = [("--step", step), ("--to", target), ("--form", form)]
    given = [str(part) for name, value in options if value is not None for part in (name, value)]
    sys.exit(run_module("sft_dist.export", [find_run(run, runs_root(runs)), *given]))


@cli.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False))
@click.argument("file", default="-")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with all probabilities.")
def predict(model: str, file: str, as_json: bool) -> None:
    """Label the texts in FILE (or standard input) with an exported MODEL or a run's winner.

    Example: echo "a lovely film" | sft-dist predict runs/my/0a1b2c3d4e/export
    """
    from launch.subprocesses import run_module

    sys.exit(run_module("sft_dist.predict", [model, file, *(["--json"] if as_json else [])]))
