"""Which way of adapting an ImageNet network tells 196 models of cars apart best?

    python -m sweeps.stanford_cars --data DIR

DIR holds Stanford Cars (Krause et al. 2013) in its original layout: cars_train/, cars_test/ and devkit/. Without --data
it is looked for in data/stanford_cars; --download fetches a copy from the hub into that folder first.

Cost: not measured on a GPU yet; 3 recipes of 3 epochs, MobileNetV2 at 64 px, take five minutes on 2 CPU cores.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from sweeps.engine.cli import main
from sweeps.engine.options import Options
from sweeps.engine.plan import Plan

DEFAULT_DATA_FOLDER = Path("data/stanford_cars")

plan = Plan(
    experiment="stanford_cars",
    question="Which way of adapting an ImageNet network tells 196 models of cars apart best?",
    source="stanford_cars",
    backbones=("efficientnet_b3",),
    trials=40,
    epochs=20,
)


@dataclass(frozen=True)
class CarsOptions(Options):
    """The shared flags, and one for those who have no copy of the data yet."""

    download: bool = False
    """Fetch a copy of Stanford Cars from the hub into DIR (data/stanford_cars unless given), 2 GB."""


def find_data(asked: CarsOptions) -> Options:
    """The folder with the photos.

    Raises:
        ValueError: there is none; the message says which files belong where.
    """
    if "://" in asked.data:
        return asked
    folder = Path(asked.data) if asked.data else DEFAULT_DATA_FOLDER
    if asked.download and not (folder / "cars_train").exists():
        from xfer.data.stanford_cars_download import download_stanford_cars

        download_stanford_cars(folder, say=print)
    if not asked.data and not folder.exists():
        from xfer.data.stanford_cars import STANFORD_CARS_LAYOUT

        raise ValueError(
            f"there is no {folder}. Say where the photos are with --data DIR, or fetch a copy from the hub with "
            f"--download.\n{STANFORD_CARS_LAYOUT}"
        )
    return dataclasses.replace(asked, data=str(folder))


if __name__ == "__main__":
    main(plan, __doc__, flags=CarsOptions, find=find_data)
