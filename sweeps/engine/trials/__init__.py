"""Running trials: in Ray Tune, or as batched probes."""
