"""Which way of adapting an ImageNet network tells 196 models of cars apart best?

    python -m sweeps.stanford_cars --data DIR

DIR holds Stanford Cars (Krause et al. 2013) in its original layout: cars_train/, cars_test/ and devkit/. The default
folder is data/stanford_cars; --download first downloads a copy from the hub into that folder.

Cost: not measured on a GPU yet; 3 recipes of 3 epochs, MobileNetV2 at 64 px, take five minutes on 2 CPU cores.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from sweeps.engine.cli import main
from sweeps.engine.options import CliOptions
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
class CarsOptions(CliOptions):
    """The shared flags, and one to download the data."""

    download: bool = False
    """Download a copy of Stanford Cars, 2 GB, from the hub into DIR (by default data/stanford_cars)."""


def find_data(requested: Plan, options: CarsOptions) -> Plan:
    """Find the folder with the photos, or download it.

    Raises:
        ValueError: there is no folder; the message says which files belong where.
    """
    if "://" in requested.data:
        return requested
    folder = Path(requested.data) if requested.data else DEFAULT_DATA_FOLDER
    if options.download and not (folder / "cars_train").exists():
        from xfer.data.stanford_cars_download import download_stanford_cars

        download_stanford_cars(folder, say=print)
    if not requested.data and not folder.exists():
        from xfer.data.stanford_cars import STANFORD_CARS_LAYOUT

        raise ValueError(
            f"there is no {folder}. Say where the photos are with --data DIR, or download a copy from the hub with "
            f"--download.\n{STANFORD_CARS_LAYOUT}"
        )
    return dataclasses.replace(requested, data=str(folder))


if __name__ == "__main__":
    main(plan, __doc__, flags=CarsOptions, find=find_data)
