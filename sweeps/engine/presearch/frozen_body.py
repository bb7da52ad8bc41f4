"""Features of a backbone's frozen body before the search: cached where the search's heads read them."""

from __future__ import annotations

from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.planning.screening import initial_head_recipe
from sweeps.engine.storage.remote_features import RemoteCache
from sweeps.engine.storage.store import Store
from xfer.data.split import Split
from xfer.feature_extraction.feature_cache import FeatureCache
from xfer.feature_extraction.frozen_features import FrozenFeatures
from xfer.feature_extraction.model_split import split_at_classifier
from xfer.run import Run
from xfer.storage import local_cache, object_store


def frozen_body(prepared: Prepared, backbone: str, cache: FeatureCache | None) -> tuple[Split, FrozenFeatures]:
    """Return the split of the default recipe of a linear head on a backbone, and the features that the head reads.

    Args:
        prepared: the plan with its data and weights.
        backbone: name of one with pretrained weights.
        cache: where features are stored; None for one that lives as long as the features.

    Raises:
        ValueError: the backbone does not support the head, or its weights have changed.
    """
    run = Run(initial_head_recipe(prepared, backbone), prepared.pack, prepared.backbone(backbone).file, features=cache)
    run.set_pace(0)  # freezes the body, so that the features are those of the search's heads
    return run.split, run.frozen_body or run.inputs.frozen_features(split_at_classifier(run.model))


def feature_cache(store: Store) -> FeatureCache:
    """Return the cache of the trials of a sweep."""
    folder = store.folder.parent / "features"
    return FeatureCache(local_cache.local_path(folder), RemoteCache(folder) if object_store.is_remote(folder) else None)
