"""Facts of trackers: the package that each needs, and where MLflow can keep its runs."""

from __future__ import annotations

from sft_dist.recipe.masking import masked

# name -> (module, what to install)
TRACKER_PACKAGES = {
    "tensorboard": ("tensorboard", "sft-dist[tracking]"),
    "wandb": ("wandb", "sft-dist[wandb]"),
    "mlflow": ("mlflow", "sft-dist[mlflow]"),
    "trackio": ("trackio", "sft-dist[trackio]"),
}
MLFLOW_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")


def check_tracking_uri(uri: str) -> str:
    """Accepts the URI of a database or a server for MLflow. Raises ValueError."""
    if uri.partition(":")[0].partition("+")[0] not in MLFLOW_SCHEMES:
        raise ValueError(
            "MLflow no longer keeps runs in folders; use a database, such as `sqlite:///mlflow.db`, or a server"
        )
    if masked(uri) != uri:
        raise ValueError("a password would stay in the run folder; put this URI into $MLFLOW_TRACKING_URI instead")
    return uri
