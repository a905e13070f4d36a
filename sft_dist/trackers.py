"""TensorBoard, W&B, MLflow and trackio, through Accelerate's trackers.

A run is one run of its tracker, also when it is resumed and when its checkpoints are evaluated: what names it there is kept in
`trackers.json`. A tracker that fails is named once and switched off; training neither stops nor waits for it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from accelerate import PartialState
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from sft_dist.recipe.files import read_object, write_json
from sft_dist.recipe.masking import masked, masked_values
from sft_dist.recipe.schema import Recipe
from sft_dist.run.candidates import members_in
from sft_dist.run.folder import RunFolder
from sft_dist.run.locks import is_locked
from sft_dist.run.varying import describe_settings, settings_in

log = logging.getLogger("sft_dist")

HYPERPARAMETERS = ("wandb", "mlflow", "trackio")  # for TensorBoard they would be a run of their own
SQLITE = "sqlite:///"


class SafeTracker(GeneralTracker):
    """Passes everything on to a tracker until that fails, which is logged once."""

    requires_logging_directory = False
    main_process_only = False

    def __init__(self, name: str, make: Callable[[], GeneralTracker]) -> None:
        self.name = name
        self._make = make
        self.inner: GeneralTracker | None = None
        super().__init__(_blank=True)

    @property
    def tracker(self) -> Any:
        return self.inner and self.inner.tracker

    def start(self) -> None:
        self.inner = self._attempt(self._start)

    def _start(self) -> GeneralTracker:
        inner = self._make()
        inner.start()
        return inner

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        if self.name in HYPERPARAMETERS:
            self.call(lambda inner: inner.store_init_configuration(values))

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        self.call(lambda inner: inner.log(values, step=step, **options))

    def finish(self) -> None:
        self.call(lambda inner: inner.finish())

    def call(self, action: Callable[[Any], Any]) -> None:
        """Calls a function with the inner tracker, if that works so far."""
        inner = self.inner
        if inner is not None:
            self._attempt(lambda: action(inner))

    def _attempt(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # whatever a library raises without a network, a disk or an account
            self.inner = None
            log.warning("%s is switched off: %s", self.name, masked(f"{type(error).__name__}: {error}"))
            return None


class _OfflineFallback(WandBTracker):
    """W&B that keeps the run in its folder where the server cannot be reached or no account is configured."""

    def start(self) -> None:
        try:
            super().start()
            if self.run.url:
                log.info("W&B: %s", self.run.url)
        except Exception as error:
            folder = f"{self.init_kwargs['dir']}/wandb"
            log.warning(
                "W&B logs offline (%s); upload it with: wandb sync %s/offline-run-*", masked(str(error)), folder
            )
            import wandb

            wandb.teardown()  # its service holds the run's id, which it would refuse a second time
            self.init_kwargs["mode"] = "offline"
            super().start()


# ── starting ────────────────────────────────────────────────────────────────────────────────────────────────────────
def trackers_of(recipe: Recipe, folder: RunFolder) -> list[SafeTracker]:
    """Returns the trackers that a recipe names, not started yet. Only one process may start them."""
    return [
        SafeTracker(settings.name, lambda settings=settings: _MAKERS[settings.name](settings, recipe, folder))  # type: ignore[misc]
        for settings in recipe.train.tracking
    ]


def hyperparameters(recipe: Recipe) -> dict[str, Any]:
    """Returns the settings of a recipe as flat values, without secrets."""
    simple = (int, float, str, bool, type(None))
    values = masked_values(settings_in(recipe.model_dump(mode="json")))
    return {key: value if isinstance(value, simple) else json.dumps(value) for key, value in values.items()}


def run_name(folder: RunFolder) -> str:
    """`lr=1e-4 seed=2 0a1b2c3d4e`"""
    point = read_object(folder.plan_file).get("point") or {}
    return f"{describe_settings(point)} {folder.id}".strip()


def _tensorboard(settings: Any, recipe: Recipe, folder: RunFolder) -> GeneralTracker:
    return TensorBoardTracker("tracking", str(folder.path))


def _wandb(settings: Any, recipe: Recipe, folder: RunFolder) -> GeneralTracker:
    import wandb

    return _OfflineFallback(
        settings.project or os.environ.get("WANDB_PROJECT") or recipe.name,
        id=_identity(folder, "wandb", lambda: secrets.token_hex(6)),
        name=run_name(folder),
        resume="allow",
        dir=str(folder.path),
        # Logs and source are in the run folder already.
        settings=wandb.Settings(console="off", quiet=True, disable_git=True, save_code=False, init_timeout=30),
    )


def _trackio(settings: Any, recipe: Recipe, folder: RunFolder) -> GeneralTracker:
    os.environ.setdefault("TRACKIO_DIR", str(folder.path.parent / "trackio"))  # read when it is imported
    name = _identity(folder, "trackio", lambda: run_name(folder))
    return TrackioTracker(settings.project or recipe.name, name=name, resume="allow", embed=False)


class _MLflow(MLflowTracker):
    """MLflow with the URI of its recipe; remembers the run that the server has named."""

    retries: ClassVar[str] = "2"  # the default waits for minutes where no server answers

    def __init__(self, uri: str, folder: RunFolder, **options: Any) -> None:
        super().__init__(run_id=read_object(folder.trackers_file).get("mlflow"), **options)
        self.uri, self.folder = uri, folder

    def start(self) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", self.retries)
        import mlflow

        mlflow.set_tracking_uri(self.uri)
        super().start()
        _identity(self.folder, "mlflow", lambda: self.active_run.info.run_id)

    def finish(self) -> None:
        import mlflow

        mlflow.end_run()


def _mlflow(settings: Any, recipe: Recipe, folder: RunFolder) -> GeneralTracker:
    uri = mlflow_uri(settings.uri, os.environ, folder.path.parent)
    artifacts = (folder.path.parent / "mlflow-artifacts").as_uri() if uri.startswith(SQLITE) else None
    project = settings.project or recipe.name
    return _MLflow(uri, folder, experiment_name=project, logging_dir=artifacts, run_name=run_name(folder))


def mlflow_uri(uri: str | None, environment: Mapping[str, str], runs: Path) -> str:
    """Returns the database or server: the recipe's, MLFLOW_TRACKING_URI, or a SQLite file beside the runs, where relative paths of
    SQLite files begin."""
    uri = uri or environment.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    path = uri.removeprefix(SQLITE)
    return uri if path == uri else f"{SQLITE}{runs / path}"


_MAKERS: Mapping[str, Callable[[Any, Recipe, RunFolder], GeneralTracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}


def _identity(folder: RunFolder, tracker: str, make: Callable[[], str]) -> str:
    """Returns what names the run in a tracker, made at its first start."""
    recorded = read_object(folder.trackers_file)
    if tracker not in recorded:
        write_json(folder.trackers_file, {**recorded, tracker: (identity := make())})
        return identity
    return str(recorded[tracker])


# ── the sweep ───────────────────────────────────────────────────────────────────────────────────────────────────────
def track_sweep(folders: Sequence[RunFolder], board: Mapping[str, Any], leaderboard_in: Path) -> None:
    """Logs the scores of a sweep to the trackers of its runs, and where leaderboard and report are. What was logged before is not
    logged again, and a run that is being trained is left to its trainer."""
    for folder in folders:
        recipe = folder.recipe()
        if not recipe.train.tracking or is_locked(folder.lock_file):
            continue
        digest = hashlib.sha256(json.dumps(board, sort_keys=True, default=str).encode()).hexdigest()
        if read_object(folder.trackers_file).get("sweep") == digest:
            continue
        PartialState()  # Accelerate's trackers ask it whether they are on the main process
        trackers = trackers_of(recipe, folder)
        for tracker in trackers:
            tracker.start()
            _SENDERS[tracker.name](tracker, folder.id, board, leaderboard_in)
            tracker.finish()
        if any(tracker.inner is None for tracker in trackers):
            continue  # the next sweep tries again
        write_json(folder.trackers_file, {**read_object(folder.trackers_file), "sweep": digest})


def scores_by_step(run: str, board: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Returns the scores of a run's checkpoints: `evaluation/accuracy` on validation, and the winner's `test/accuracy`. A mean of
    checkpoints is in the table alone, but its test scores stand at its newest step."""
    rows = [row for row in board["rows"] if row["run"] == run and not members_in(row)]
    steps = {row["step"]: _numbers("evaluation", row["validation"]) for row in rows}
    winner = board["winner"]
    if winner["run"] == run:
        final = [_numbers(split, winner[split]) for split in ("train", "test") if split in winner]
        steps[winner["step"]] = {
            key: value for scores in (steps.get(winner["step"], {}), *final) for key, value in scores.items()
        }
    return dict(sorted(steps.items()))


def _numbers(prefix: str, scores: Mapping[str, Any]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in scores.items() if isinstance(value, int | float)}


def _pages(leaderboard_in: Path) -> dict[str, str]:
    """Returns where the pages of a sweep are: the leaderboard, and the report if there is one."""
    files = {"leaderboard": leaderboard_in / "leaderboard.md", "report": leaderboard_in / "report.html"}
    return {name: str(file) for name, file in files.items() if file.is_file()}


def table_of(board: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Returns the columns and rows of a leaderboard: run, step, steps of a mean, and the scores on validation."""
    names = [name.partition("/")[2] for name in _numbers("evaluation", board["winner"]["validation"])]
    rows = []
    for row in board["rows"]:
        members = ", ".join(map(str, members_in(row)))
        rows.append([row["run"], row["step"], members, *(row["validation"].get(name) for name in names)])
    return ["run", "step", "members", *names], rows


def _send_steps(tracker: SafeTracker, run: str, board: Mapping[str, Any], leaderboard_in: Path) -> None:
    for step, scores in scores_by_step(run, board).items():
        tracker.log(scores, step=step)


def _send_to_tensorboard(tracker: SafeTracker, run: str, board: Mapping[str, Any], leaderboard_in: Path) -> None:
    _send_steps(tracker, run, board, leaderboard_in)
    pages = _pages(leaderboard_in)
    table = Path(pages["leaderboard"]).read_text(encoding="utf-8") if "leaderboard" in pages else ""
    tracker.log({"leaderboard": "\n\n".join([table, *pages.values()])})


def _send_to_wandb(tracker: SafeTracker, run: str, board: Mapping[str, Any], leaderboard_in: Path) -> None:
    """W&B drops values of earlier steps than its last, so that the scores have an axis of their own."""
    for prefix in ("evaluation", "test"):
        tracker.call(lambda inner, prefix=prefix: inner.run.define_metric(f"{prefix}/*", step_metric="checkpoint"))  # type: ignore[misc]
    for step, scores in scores_by_step(run, board).items():
        tracker.log({"checkpoint": step, **scores})
    columns, rows = table_of(board)
    tracker.call(lambda inner: inner.log_table("leaderboard", columns=columns, data=rows))
    tracker.call(lambda inner: inner.run.summary.update(_pages(leaderboard_in)))


def _send_to_mlflow(tracker: SafeTracker, run: str, board: Mapping[str, Any], leaderboard_in: Path) -> None:
    _send_steps(tracker, run, board, leaderboard_in)
    pages = _pages(leaderboard_in)

    def send_pages(inner: Any) -> None:
        import mlflow

        mlflow.set_tags(pages)
        if "leaderboard" in pages:
            mlflow.log_artifact(pages["leaderboard"])

    tracker.call(send_pages)


def _send_to_trackio(tracker: SafeTracker, run: str, board: Mapping[str, Any], leaderboard_in: Path) -> None:
    _send_steps(tracker, run, board, leaderboard_in)
    columns, rows = table_of(board)
    text = "\n\n".join(f"{name}: {file}" for name, file in _pages(leaderboard_in).items())

    def send_table(inner: Any) -> None:
        import trackio

        inner.run.log({"leaderboard": trackio.Table(columns=columns, data=rows), "pages": trackio.Markdown(text)})

    tracker.call(send_table)


_SENDERS = {
    "tensorboard": _send_to_tensorboard,
    "wandb": _send_to_wandb,
    "mlflow": _send_to_mlflow,
    "trackio": _send_to_trackio,
}
