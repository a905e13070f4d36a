"""The command line: each verb parses and calls one function. Only click and the standard library are imported here; a verb
imports what it needs, so that `--help` is instant and nothing short of training imports torch."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def _completer(name: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Returns a function of `completion.py`, which is imported when a shell asks."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from launch import completion

        items: list[CompletionItem] = getattr(completion, name)(ctx, param, incomplete)
        return items

    return complete


def _targets(metavar: str, required: bool = True) -> Callable[..., Any]:
    completer = _completer("complete_runs")
    return click.argument("targets", nargs=-1, required=required, metavar=metavar, shell_complete=completer)


RECIPE = click.argument("recipe", shell_complete=_completer("complete_files"))
OVERRIDES = click.argument(
    "overrides", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=_completer("complete_overrides")
)
RUN = click.argument("run", shell_complete=_completer("complete_runs"))
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}
RUNS = click.option("--runs", metavar="DIR", help="Folder of the runs.", show_default="$SFT_DIST_RUNS, else ./runs")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
ALLOW = click.option(
    "--allow",
    multiple=True,
    metavar="FINDING",
    shell_complete=_completer("complete_findings"),
    help="Accept this finding although it is an error (repeatable).",
)
CLUSTER = click.option(
    "--cluster",
    metavar="NAME",
    envvar="SFT_DIST_CLUSTER",
    shell_complete=_completer("complete_clusters"),
    help="Name or file of the cluster; local: this machine.",
)
COMMITS = click.option(
    "--trust-remote-code", "commits", multiple=True, metavar="COMMIT", help="Run the model's own code, at this commit."
)
PICKLE = click.option("--allow-pickle", "pickle", is_flag=True, help="Allow weights in a pickle file.")
TASK_CODE = click.option("--allow-task-code", "task_code", is_flag=True, help="Allow code of lm-eval tasks to run.")
# Other programs' names of these verbs.
OTHER_VERBS = {
    "train": "run", "fit": "run", "start": "run", "launch": "run", "evaluate": "eval", "test": "eval", "validate": "check",
    "sbatch": "submit", "scancel": "cancel", "squeue": "status", "list": "status", "ls": "status", "ps": "status",
    "continue": "resume", "tail": "logs", "generate": "predict", "infer": "predict", "compare": "diff", "tune": "search", "sweep": "search", "optimize": "search", "reproduce": "replay", "help": "--help",
}  # fmt: skip
FILE = click.Path(path_type=Path, dir_okay=False)
PROCESSES = click.option("--processes", type=click.IntRange(1), metavar="N", help="Processes on this machine.")


def main() -> None:
    """Entry point. Errors of the user exit with code 2 and no traceback, all others with 1 and their traceback."""
    _start_fast()
    _print_any_text()
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
    """Speeds up what is imported from here on (docs/decisions/0005-start-up.md)."""
    gc.set_threshold(200_000)  # importing makes many objects that stay; none of them is garbage
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


def _print_any_text() -> None:
    """Lets names and labels be printed that are not UTF-8: escaped, as JSON escapes them."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


class _StrategyOption(click.Option):
    """Its help names the strategies, which are read only when it is shown."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        from sft_dist.recipe.strategies import STRATEGIES

        self.help = (self.help or "").format(names=", ".join(STRATEGIES))
        return super().get_help_record(ctx)


class _Ordered(click.Group):
    """Lists the verbs in the order in which they are typically used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggests the verb that was probably meant."""
        if self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            from difflib import get_close_matches

            close = get_close_matches(args[0].lower(), [*self.commands, *OTHER_VERBS], n=1)
            hint = f"; did you mean `{OTHER_VERBS.get(close[0], close[0])}`?" if close else ""
            ctx.fail(f"No such command {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)


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
    """Recipes in, trained and evaluated models out.

    \b
    sft-dist check recipes/text-classification/quickstart.yaml    check the data
    sft-dist plan recipes/text-classification/quickstart.yaml     show what would happen
    sft-dist run  recipes/text-classification/quickstart.yaml     train
    sft-dist eval recipes/text-classification/quickstart.yaml     evaluate every checkpoint, export the best
    sft-dist submit recipes/text-classification/quickstart.yaml --cluster NAME     the same on a Slurm cluster
    """


@cli.command()
@click.argument("task", shell_complete=_completer("complete_tasks"))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write instead of standard output.")
def init(task: str, output: Path | None) -> None:
    """Print a commented starter recipe for a TASK.

    Example: sft-dist init text-classification -o my.yaml
    """
    from launch.starters import starter, write_starter

    if output is None:
        click.echo(starter(task), nl=False)
        return
    write_starter(task, output)
    click.echo(f"wrote {output}; next: sft-dist plan {output}", err=True)


@cli.command()
def schema() -> None:
    """Print the recipe's JSON Schema, for editors.

    An editor completes and checks a recipe whose first line is `# yaml-language-server: $schema=recipe.schema.json`.

    Example: sft-dist schema > recipe.schema.json
    """
    from launch.starters import json_schema

    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


@cli.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def print_completion(shell: str) -> None:
    """Print the script that completes verbs, files, runs, tasks and override keys in a SHELL.

    Example: sft-dist completion bash >> ~/.bashrc
    """
    from launch.completion import script_for

    click.echo(script_for(shell, cli))


@cli.command()
@RECIPE
@OVERRIDES
@ALLOW
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File of the HTML page.",
    show_default="RUNS/NAME/check.html",
)
@click.option(
    "--preview",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Show N examples on the page, before and after augmentation.",
)
@click.option(
    "--time", "timed", is_flag=True, help="Measure a few steps on this machine to estimate the training time."
)
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
    """Check a RECIPE's data before it costs GPU time: labels, leaks, duplicates, unreadable files, lengths.

    Exit code 0: no findings or only warnings; 1: errors found (`submit` refuses such a recipe); 2: the recipe is
    invalid; 3: the check did not finish.

    Example: sft-dist check my.yaml --preview 10
    """
    from launch.check import run_check
    from launch.run_folders import runs_root

    sys.exit(run_check(recipe, overrides, runs_root(runs), allow, page, preview, timed, as_json))


@cli.command()
@RECIPE
@OVERRIDES
@PROCESSES
@click.option(
    "--cluster",
    metavar="NAME",
    shell_complete=_completer("complete_clusters"),
    help="Plan for a Slurm cluster and print the job script.",
)
@click.option("--script", "script_only", is_flag=True, help="Print only the (first) job script.")
@click.option("--diff", is_flag=True, help="List which runs are missing, queued, running and finished.")
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
    from launch.run_folders import runs_root
    from launch.show_plan import show_plan

    click.echo(show_plan(recipe, overrides, runs_root(runs), processes, cluster, script_only, diff, as_json), nl=False)


@cli.command()
@RECIPE
@OVERRIDES
@PROCESSES
@click.option("--debug", is_flag=True, help="Train in this process (with --processes 1), so that breakpoints work.")
@click.option("--fresh", is_flag=True, help="Start over in a new run folder beside the old one.")
@RUNS
@click.option("-y", "--yes", is_flag=True, help="Start many runs without asking.")
def run(
    recipe: str,
    overrides: tuple[str, ...],
    processes: int | None,
    debug: bool,
    fresh: bool,
    runs: str | None,
    yes: bool,
) -> None:
    """Train all runs of a RECIPE on this machine, one after another.

    Finished runs are skipped, unfinished ones are resumed. The first Ctrl-C saves and stops, the second ends at once.

    Example: sft-dist run my.yaml train.epochs=1
    """
    from launch.run import run_recipe
    from launch.run_folders import runs_root

    sys.exit(run_recipe(recipe, overrides, runs_root(runs), processes, fresh, debug, ask=not yes))


@cli.command()
@RECIPE
@OVERRIDES
@CLUSTER
@click.option("--max-parallel", type=click.IntRange(1), metavar="N", help="Maximum number of runs at the same time.")
@click.option(
    "--eval/--no-eval", "evaluate", default=True, help="Evaluate the checkpoints in a separate job afterwards."
)
@click.option(
    "--fresh", is_flag=True, help="Start over in new run folders beside the old ones, with the current source."
)
@click.option("--dry-run", is_flag=True, help="Only print what would be submitted.")
@click.option("--check/--no-check", "checked", default=True, help="Check the data first; errors block the submission.")
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
    """Submit all runs of a RECIPE (or a run folder) to a Slurm cluster, as one job or one job array.

    Finished runs and runs with a job in the queue are skipped, so submitting again is safe.

    Example: sft-dist submit my.yaml --cluster my-cluster --max-parallel 8
    """
    from launch.run_folders import runs_root
    from launch.submit import submit_recipe

    sys.exit(
        submit_recipe(
            recipe, overrides, runs_root(runs), cluster, processes, max_parallel, allow,
            fresh=fresh, evaluate=evaluate, check=checked, dry_run=dry_run,
        )
    )  # fmt: skip


@cli.group("cluster", cls=_Ordered)
def clusters() -> None:
    """List, show and draft cluster files.

    Example: sft-dist cluster list
    """


@clusters.command("list")
@AS_JSON
def cluster_list(as_json: bool) -> None:
    """List the clusters that `--cluster` knows by name.

    Example: sft-dist cluster list
    """
    from launch.slurm.clusters import known_clusters

    files = known_clusters()
    if as_json:
        click.echo(json.dumps({name: str(file) for name, file in files.items()}, indent=2))
        return
    for name, file in {"local": "this machine", **files}.items():
        click.echo(f"{name:<20} {file}")


@clusters.command("show")
@click.argument("name", shell_complete=_completer("complete_clusters"))
@AS_JSON
def cluster_show(name: str, as_json: bool) -> None:
    """Check a cluster file and print it with every default filled in.

    Example: sft-dist cluster show devcluster
    """
    import yaml

    from launch.slurm.clusters import find_cluster, read_cluster

    file = find_cluster(name)
    settings = read_cluster(file).model_dump()
    text = (
        json.dumps(settings, indent=2) + "\n" if as_json else f"# {file}\n{yaml.safe_dump(settings, sort_keys=False)}"
    )
    click.echo(text, nl=False)


@clusters.command("probe")
@click.option("--partition", metavar="NAME", help="Partition to describe.", show_default="the cluster's default")
def cluster_probe(partition: str | None) -> None:
    """Draft a cluster file from what Slurm reports on this machine.

    Example: sft-dist cluster probe > ~/.config/sft-dist/clusters/mine.yaml
    """
    from launch.slurm.probe import draft, probe

    click.echo(draft(probe(partition)), nl=False)


class _SearchGroup(_Ordered):
    """`search RECIPE` means `search run RECIPE`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self.with_verb(args))

    def with_verb(self, args: list[str]) -> list[str]:
        """Returns the arguments behind the verb that they leave to the default."""
        verb = [] if not args or args[0] in (*self.commands, "-h", "--help") else ["run"]
        return [*verb, *args]


@cli.group("search", cls=_SearchGroup)
def searches() -> None:
    """Search hyper-parameters: `search RECIPE` trains trials until the recipe's budget is used up.

    The recipe's `search` section has the space, the sampler, the budget and the pruning. The same command continues a
    search that was interrupted, with no trial lost or repeated.

    Example: sft-dist search my.yaml
    """


@searches.command("run")
@RECIPE
@OVERRIDES
@CLUSTER
@PROCESSES
@click.option("--once", is_flag=True, help="With --cluster: submit what is due and leave, for cron.")
@RUNS
def search_run(
    recipe: str, overrides: tuple[str, ...], cluster: str | None, processes: int | None, once: bool, runs: str | None
) -> None:
    """Train the trials of a RECIPE's search, or continue it.

    Exit code 0: the budget is used up and a trial has finished; 1: none has; 130: interrupted, after the trials have saved.

    Example: sft-dist search run my.yaml search.budget.trials=50 --cluster my-cluster
    """
    from launch.run_folders import runs_root
    from launch.search.run import run_search

    if once and cluster in (None, "", "local"):
        raise click.UsageError("--once works with --cluster only: trials on this machine end with the command")
    sys.exit(run_search(recipe, overrides, runs_root(runs), cluster, processes, once))


@searches.command("status")
@RECIPE
@OVERRIDES
@RUNS
@AS_JSON
def search_status(recipe: str, overrides: tuple[str, ...], runs: str | None, as_json: bool) -> None:
    """Show a search's trials: the best so far, running and paused ones, pruned ones and why.

    Example: sft-dist search status my.yaml
    """
    from launch.run_folders import runs_root
    from launch.search.status import show_status

    click.echo(show_status(recipe, overrides, runs_root(runs), as_json))


@searches.command("stop")
@RECIPE
@OVERRIDES
@RUNS
def search_stop(recipe: str, overrides: tuple[str, ...], runs: str | None) -> None:
    """Stop a search after its trials have saved a checkpoint.

    Example: sft-dist search stop my.yaml
    """
    from launch.run_folders import runs_root
    from launch.search.run import stop_search

    click.echo(stop_search(recipe, overrides, runs_root(runs)))


@searches.command("best")
@RECIPE
@OVERRIDES
@click.option("--write", "file", type=FILE, metavar="FILE", help="Write the best trial's recipe.")
@RUNS
def search_best(recipe: str, overrides: tuple[str, ...], file: Path | None, runs: str | None) -> None:
    """Show the best trial of a search, and write its recipe.

    Example: sft-dist search best my.yaml --write best.yaml
    """
    from launch.run_folders import runs_root
    from launch.search.best import show_best

    click.echo(show_best(recipe, overrides, runs_root(runs), file))


@cli.command()
@RUN
@PROCESSES
@click.option(
    "--strategy",
    cls=_StrategyOption,
    metavar="NAME",
    shell_complete=_completer("complete_strategies"),
    help="Resume with another strategy: {names}.",
)
@COMMITS
@PICKLE
@RUNS
def resume(
    run: str, processes: int | None, strategy: str | None, commits: tuple[str, ...], pickle: bool, runs: str | None
) -> None:
    """Resume a RUN (folder, id, beginning of an id, or a recipe with one run) from its newest checkpoint, on this machine.

    Results are the same on any number of processes and with any strategy.

    Example: sft-dist resume runs/my/0a1b2c3d4e --processes 4 --strategy fsdp2
    """
    from launch.run import resume_run
    from launch.run_folders import find_run, runs_root
    from sft_dist.recipe.trust import Trust

    trust = Trust(frozenset(commits), pickle)
    sys.exit(resume_run(find_run(run, runs_root(runs)), processes, strategy, trust))


@cli.command()
@_targets("[RECIPE_OR_FOLDER]...", required=False)
@click.option("-w", "--watch", is_flag=True, help="Refresh until Ctrl-C.")
@click.option("--every", type=click.IntRange(5), default=30, metavar="SECONDS", help="Seconds between refreshes.")
@click.option("--state", "states", multiple=True, metavar="STATE", help="Show only runs in this state (repeatable).")
@RUNS
@AS_JSON
def status(
    targets: tuple[str, ...], watch: bool, every: int, states: tuple[str, ...], runs: str | None, as_json: bool
) -> None:
    """Show the state of runs; of all runs without arguments.

    Slurm is queried only about submitted runs: one squeue, and one sacct when a job has left the queue.

    Example: sft-dist status my.yaml --watch
    """
    from launch.status import show_status

    show_status(targets, runs, every if watch else None, as_json, states)


@cli.command()
@RUN
@click.option("-f", "--follow", is_flag=True, help="Keep printing until the run has ended, later attempts included.")
@click.option("--rank", type=click.IntRange(0), metavar="N", help="Print the log of one rank.")
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="Attempt to print.", show_default="the newest")
@RUNS
def logs(run: str, follow: bool, rank: int | None, attempt: int | None, runs: str | None) -> None:
    """Print a RUN's log.

    Example: sft-dist logs 0a1b -f
    """
    from launch.logs import print_log
    from launch.run_folders import find_run, runs_root
    from sft_dist.run.folder import RunFolder

    with contextlib.suppress(KeyboardInterrupt):  # the way to stop following
        print_log(RunFolder(find_run(run, runs_root(runs))), attempt, rank, follow)


@cli.command()
@_targets("RECIPE_OR_RUN_OR_PATTERN...")
@click.option("--now", "at_once", is_flag=True, help="End running jobs at once, without saving.")
@click.option("-y", "--yes", is_flag=True, help="Cancel without asking.")
@RUNS
def cancel(targets: tuple[str, ...], at_once: bool, yes: bool, runs: str | None) -> None:
    """Cancel runs: queued jobs are removed, running ones save a checkpoint and exit.

    Example: sft-dist cancel 'my-sweep/*'
    """
    from launch.run_folders import runs_root
    from launch.slurm.cancel import cancel as cancel_jobs
    from launch.slurm.cancel import plan_cancellation

    cancellation = plan_cancellation(targets, runs_root(runs))
    if not cancellation.num_jobs:
        click.echo("none of these runs has a job in the queue")
        return
    running = f"{len(cancellation.running)} running ({'ended at once' if at_once else 'which save first'})"
    evaluations = f", {len(cancellation.evaluations)} evaluation" if cancellation.evaluations else ""
    click.echo(
        f"{len(cancellation.folders)} runs: {len(cancellation.pending)} waiting, {running}{evaluations}", err=True
    )
    if not yes:
        click.confirm(f"Cancel {cancellation.num_jobs} jobs?", abort=True, err=True)
    cancel_jobs(cancellation, at_once)


@cli.command()
@RUN
@click.option("--wait", default=300.0, metavar="SECONDS", help="Seconds to wait for the checkpoint.")
@RUNS
def stop(run: str, wait: float, runs: str | None) -> None:
    """Stop a RUN after it has saved a checkpoint.

    Example: sft-dist stop 0a1b
    """
    from launch.run import stop_run
    from launch.run_folders import find_run, runs_root
    from sft_dist.run.folder import RunFolder

    end = stop_run(RunFolder(find_run(run, runs_root(runs))), wait)
    click.echo(f"{end.name}/{end.id} {end.state} at step {end.step}/{end.total_steps or '?'}")
    sys.exit(1 if end.state == "running" else 0)


@cli.command()
@click.argument("a", metavar="A", shell_complete=_completer("complete_runs"))
@click.argument("b", metavar="B", shell_complete=_completer("complete_runs"))
@RUNS
@AS_JSON
def diff(a: str, b: str, runs: str | None, as_json: bool) -> None:
    """Show what differs between runs A and B: recipe, code, data, environment, hardware, and where their curves part.

    Example: sft-dist diff 0a1b 4c5d
    """
    from launch.diff import show_difference
    from launch.run_folders import find_run, runs_root

    root = runs_root(runs)
    click.echo(show_difference(find_run(a, root), find_run(b, root), as_json))


@cli.command()
@RUN
@PROCESSES
@COMMITS
@PICKLE
@RUNS
@AS_JSON
def replay(
    run: str, processes: int | None, commits: tuple[str, ...], pickle: bool, runs: str | None, as_json: bool
) -> None:
    """Train a RUN again, with its recipe, seed and source, in a new folder beside it, and compare the curves.

    Exit code 0: every loss is the same number; 1: the curve differs (the output says where, and what else differs), or
    the training failed.

    Example: sft-dist replay 0a1b
    """
    from launch.replay import replay_run
    from launch.run_folders import find_run, runs_root
    from sft_dist.recipe.trust import Trust

    sys.exit(replay_run(find_run(run, runs_root(runs)), processes, as_json, Trust(frozenset(commits), pickle)))


@cli.command("eval")
@_targets("RECIPE_OR_FOLDER... [KEY=VALUE]...")
@click.option(
    "--require",
    "required",
    multiple=True,
    metavar="SCORE=NUMBER",
    help="Exit with 1 if the winner's test score is worse.",
)
@click.option(
    "--no-worse-than",
    "reference",
    metavar="RUN|base",
    help="Exit with 1 if the winner is worse than this run's best, or than the base model, beyond chance.",
)
@click.option("--force", is_flag=True, help="Re-evaluate checkpoints that have scores already.")
@click.option(
    "--processes",
    type=click.IntRange(1),
    metavar="N",
    help="Processes that share the checkpoints; on a cluster, tasks of the array.",
    show_default="1; 20 on a cluster",
)
@click.option(
    "--cluster",
    metavar="NAME",
    shell_complete=_completer("complete_clusters"),
    help="Submit this to a Slurm cluster: an array that scores, and a job that chooses.",
)
@click.option(
    "--model", metavar="MODEL", help="Evaluate this export, adapter, folder or hub id under the RECIPE instead."
)
@click.option(
    "--data",
    multiple=True,
    metavar="SOURCE",
    help="With --model: the rows to score, instead of the validation split; repeatable.",
)
@click.option(
    "--average",
    "averages",
    multiple=True,
    metavar="last:K|greedy",
    help="Also choose among means of checkpoints: of the newest K of each run, or of its greedy soup; repeatable.",
)
@click.option("--follow", is_flag=True, help="Evaluate checkpoints as training writes them, until the runs end.")
@COMMITS
@PICKLE
@TASK_CODE
@RUNS
@AS_JSON
def evaluate(
    targets: tuple[str, ...],
    required: tuple[str, ...],
    reference: str | None,
    force: bool,
    processes: int | None,
    cluster: str | None,
    model: str | None,
    data: tuple[str, ...],
    averages: tuple[str, ...],
    follow: bool,
    commits: tuple[str, ...],
    pickle: bool,
    task_code: bool,
    runs: str | None,
    as_json: bool,
) -> None:
    """Evaluate every checkpoint, select one on validation, test it once, export it.

    Scores are kept: what was interrupted continues with the same command.

    Example: sft-dist eval my.yaml --require accuracy=0.75
    """
    from launch.evaluate import evaluate_model, evaluate_runs
    from launch.run_folders import runs_root
    from sft_dist.recipe.trust import Trust
    from sft_dist.run.candidates import parse_averaging

    averages = tuple(str(parse_averaging(text)) for text in averages)
    if cluster and cluster != "local" and (required or reference or force or follow or as_json):
        raise click.UsageError("--cluster works with none of --require, --no-worse-than, --force, --follow and --json")
    trust = Trust(frozenset(commits), pickle, task_code)
    if model is not None or data:
        if not model:
            raise click.UsageError("--data needs --model MODEL")
        if required or reference or force or follow or processes or cluster or averages:
            names = "--require, --no-worse-than, --force, --processes, --cluster, --follow and --average"
            raise click.UsageError(f"--model works with none of {names}")
        sys.exit(evaluate_model(targets, model, data, as_json, trust))
    if cluster and cluster != "local":
        from launch.slurm.sweep import send_to_cluster

        click.echo(send_to_cluster(targets, runs_root(runs), cluster, processes, trust, averages))
        return
    root = runs_root(runs)
    sys.exit(evaluate_runs(targets, root, required, force, as_json, trust, reference, processes or 1, follow, averages))


@cli.command()
@_targets("RECIPE_OR_RUN...")
@click.option(
    "--write", "next_file", type=FILE, metavar="FILE", help="Write the next recipe, by a run's first finding."
)
@click.option("--sarif", "as_sarif", is_flag=True, help="Print SARIF, which CI services show beside the recipe.")
@RUNS
@AS_JSON
def diagnose(targets: tuple[str, ...], next_file: Path | None, as_sarif: bool, runs: str | None, as_json: bool) -> None:
    """Name what went wrong in runs: the cause, the numbers that show it, and the next recipe.

    Reads files of the run folders alone. Exit code 0: nothing conspicuous; 1: findings.

    Example: sft-dist diagnose 0a1b
    """
    from launch.diagnose.show import show_diagnosis

    text, code = show_diagnosis(targets, runs, as_json, as_sarif, next_file)
    click.echo(text)
    sys.exit(code)


@cli.command()
@_targets("[RECIPE_OR_FOLDER]...", required=False)
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="FILE",
    help="File of the HTML page.",
    show_default="report.html in the folder of the run or its recipe",
)
@RUNS
def report(targets: tuple[str, ...], output: Path | None, runs: str | None) -> None:
    """Write one HTML page about runs; about all runs without arguments.

    The page needs no network: summary, curves, leaderboard, what varies, confusion, time and cost, data, recipe.

    Example: sft-dist report my.yaml -o report.html
    """
    from launch.report.write import write_report

    click.echo(write_report(targets, runs, output))


@cli.command()
@_targets("[RECIPE_OR_FOLDER]...", required=False)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="N",
    help="Port to listen on.",
    show_default="a free one",
)
@RUNS
def board(targets: tuple[str, ...], port: int, runs: str | None) -> None:
    """Show the report of all runs in a browser on this machine, kept up to date, until Ctrl-C.

    Prints the address, which has a token: a program on this machine that knows it can read the page. From another
    machine: ssh -L N:127.0.0.1:N HOST, with the same --port N.

    Example: sft-dist board --port 8600
    """
    from launch.report.board import open_board, serve

    server = open_board(targets, runs, port)
    click.echo(server.url)
    serve(server)


@cli.command()
@RUN
@click.option(
    "--step", type=click.IntRange(1), metavar="N", help="Step of the checkpoint.", show_default="the winner's"
)
@click.option(
    "--to", "target", type=click.Path(path_type=Path), metavar="DIR", help="Folder to write.", show_default="RUN/export"
)
@click.option(
    "--form",
    type=click.Choice(["merged", "adapter"]),
    help="merged: LoRA merged into the base model; adapter: separate.",
)
@click.option("--temperature", is_flag=True, help="With the temperature fitted on validation, which `predict` applies.")
@COMMITS
@PICKLE
@RUNS
def export(
    run: str,
    step: int | None,
    target: Path | None,
    form: str | None,
    temperature: bool,
    commits: tuple[str, ...],
    pickle: bool,
    runs: str | None,
) -> None:
    """Export a checkpoint of a RUN as a plain Hugging Face folder.

    Example: sft-dist export 0a1b --to my-model
    """
    from launch.run_folders import find_run, runs_root
    from launch.subprocesses import run_module
    from sft_dist.recipe.trust import Trust

    options: list[tuple[str, Any]] = [("--step", step), ("--to", target), ("--form", form)]
    arguments = [str(word) for name, value in options if value is not None for word in (name, value)]
    arguments += ["--temperature"] if temperature else []
    arguments += Trust(frozenset(commits), pickle).arguments()
    sys.exit(run_module("sft_dist.export", [find_run(run, runs_root(runs)), *arguments]))


@cli.command()
@click.argument("model", shell_complete=_completer("complete_runs"))
@click.argument("files", nargs=-1, metavar="[FILE]...", shell_complete=_completer("complete_files"))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, with all probabilities.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    shell_complete=_completer("complete_files"),
    help="Write a csv, tsv, jsonl or text FILE.",
)
@click.option("--id", "id_column", metavar="COLUMN", help="Copy this COLUMN of the tables to the output.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["txt", "csv", "tsv", "jsonl", "json", "parquet", "arrow"]),
    help="Format of the FILEs.",
    show_default="by suffix; of standard input by its first line",
)
@click.option("--skip-bad", is_flag=True, help="Omit rows that cannot be read, instead of ending with exit code 2.")
@COMMITS
@PICKLE
@RUNS
def predict(
    model: str,
    files: tuple[str, ...],
    as_json: bool,
    output: str | None,
    id_column: str | None,
    file_format: str | None,
    skip_bad: bool,
    commits: tuple[str, ...],
    pickle: bool,
    runs: str | None,
) -> None:
    """Print predictions for FILEs: texts, tables, images or audio; without any, for the texts of standard input.

    One prediction for each line or row, in their order.

    MODEL is an exported folder, or a run by its folder, its id or its recipe.

    Example: echo "a lovely film" | sft-dist predict runs/my/0a1b2c3d4e/export
    """
    from launch.run_folders import find_run, runs_root
    from launch.subprocesses import run_module
    from sft_dist.recipe.trust import Trust

    named = {"--output": output, "--id": id_column, "--format": file_format}
    options = [word for name, value in named.items() if value is not None for word in (name, value)]
    options += [*(["--json"] if as_json else []), *(["--skip-bad"] if skip_bad else [])]
    options += Trust(frozenset(commits), pickle).arguments()
    folder = model if Path(model).is_dir() else find_run(model, runs_root(runs))
    sys.exit(run_module("sft_dist.predict", [*options, "--", folder, *files]))
