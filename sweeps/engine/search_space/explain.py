"""Explanations: what the networks and the images leave of the default search, in sentences."""

from __future__ import annotations

from sweeps.engine.search_space.defaults import MIN_IMAGES_FOR_MIXING, SMALL_BATCH, SUITS
from sweeps.engine.search_space.distributions import domain_values
from sweeps.engine.search_space.space import Space
from xfer.models.families import DEEP_BLOCKS, FAMILIES

UNSUITED: dict[str, str] = {
    "layer_decay": f"it has fewer than {DEEP_BLOCKS} blocks",
    "freeze_first": "it is no vision transformer",
}
"""Why a strategy of `SUITS` does not suit a network."""


def explain_defaults(space: Space) -> list[str]:
    """Return a sentence for every part of the default search that depends on a network or on the number of images.

    Axes that the user has set are not mentioned.
    """
    lines = []
    for name, network in space.traits.items():
        family = FAMILIES[network.family]
        clauses = [
            f"{name} has {family.layers.partition(':')[0]}, so the search takes the ranges of family {network.family}"
        ]
        if "optimizer" not in space.edited:
            clauses.append(f" and tries {', '.join(family.optimizers)}")
        if "strategy" not in space.edited:
            unsuited = [strategy for strategy, is_suited in SUITS.items() if not is_suited(network)]
            clauses += [f"; {strategy} is left out, because {UNSUITED[strategy]}" for strategy in unsuited]
        lines.append(f"{''.join(clauses)}.")
    if "batch_norm" not in space.edited and "frozen" in domain_values(space.axes["batch_norm"]):
        lines.append(
            f"Frozen batch norms compete in batches of at most {SMALL_BATCH} images, whose statistics are noisy."
        )
    if "mixing" not in space.edited and domain_values(space.axes["mixing"]) == ("none",):
        lines.append(
            f"Mixing images is left out below {MIN_IMAGES_FOR_MIXING:,} training images; "
            f"--vary mixing=none,cutmix adds it."
        )
    return lines
