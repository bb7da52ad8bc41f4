"""Mirrors a sweep's folder to MLflow.

The driver is the only writer, and the folder stays the only source of truth.

    experiment  plan["experiment"]
    parent run  one per sweep: the plan's main values, its progress as curves, the winner's model
    child runs  one per trial: its recipe as params, the metrics of each epoch at step = epoch, its status

Trials never talk to MLflow. A mirror asks MLflow what it already has, so any process can continue it, and a server that
was unavailable receives everything that it missed exactly once.
"""

from sweeps.engine.tracking.addresses import answers
from sweeps.engine.tracking.client import connect_mlflow, default_tracking_uri, resolve_tracking_uri, sweep_pages
from sweeps.engine.tracking.mirror import Mirror

__all__ = [
    "Mirror",
    "answers",
    "connect_mlflow",
    "default_tracking_uri",
    "resolve_tracking_uri",
    "sweep_pages",
]
