"""Preload: imports what trains a trial, torch included; imported by the driver and by each process of a local Ray.

The garbage collector is off meanwhile: it would search hundreds of thousands of new objects, none of them garbage,
again and again, which takes a fifth of the time (2026-12-01).
"""

from __future__ import annotations

import gc

gc.disable()
try:
    from sweeps.engine.trials import evaluation, probe_tasks, trainable  # noqa: F401
finally:
    gc.enable()
