"""Mirrors a sweep's folder to MLflow: one writer on the driver, and the folder stays the only truth.

    experiment  plan["experiment"]
    parent run  the sweep: the plan's main values, how many trials ended how, the winner's model
    child runs  a trial each: its recipe as params, an epoch's values at step = epoch, how it ended as status

Trials never speak to MLflow. What MLflow already has is asked from MLflow, so any process can take a mirror up, and a
server that comes back gets everything that it missed, once.
"""

from sweeps.engine.tracking.client import connect_mlflow, default_tracking_uri, resolve_tracking_uri
from sweeps.engine.tracking.mapping import redact_password
from sweeps.engine.tracking.mirror import Mirror

__all__ = ["Mirror", "connect_mlflow", "default_tracking_uri", "redact_password", "resolve_tracking_uri"]
