"""What one would write instead of this project: one file of Ray Tune, torchvision, timm, Optuna and MLflow.

    python -m benchmarks.plain --data DIR --weights FILE --trials 24 --epochs 8 --search optuna --scheduler asha

DIR holds train/<class>/*.jpg and val/<class>/*.jpg. It knows the same strategies, axes and ranges as
sweeps/engine/search_space/defaults.py (tests/test_benchmarks.py compares them), and frames photos as xfer/data/images.py
does. It is
meant as a good script: a frozen body stands in evaluation mode and gets no gradient, loader processes live as long as
their trial, the sampler models conditional parameters together. What it leaves alone is what such scripts leave alone:
`reuse_actors` keeps its default (False), memory is allocated as usual, images are in torch's usual order unless
`--channels-last` is given. It writes no checkpoints.
"""
# ruff: noqa: E402  (the clock starts before the imports, which belong to what a user waits for)

from __future__ import annotations

import time

START_TIME = time.time()

import argparse
import json
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import ray
import timm
import timm.optim
import torch
from optuna import Trial
from optuna.samplers import RandomSampler, TPESampler
from PIL import Image
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from ray.tune.stopper import Stopper
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

STRATEGIES = ("clip", "freeze_then_unfreeze", "naive", "linear_probe", "scratch")
CLIP_NORMS = (None, 0.5, 1.0, 5.0)
LEARNING_RATES = {"sgd": (1e-3, 1e-1), "adam": (3e-5, 1e-2), "radam": (3e-5, 1e-2), "ranger": (1e-4, 3e-2)}
SCHEDULES = ("onecycle", "cosine")
AUGMENTATIONS = ("flip", "none", "randaugment")
MIXINGS = ("none", "cutmix")
LOSSES = ("cross_entropy", "label_smoothing")
WEIGHT_DECAYS = (1e-6, 1e-2)
BATCH_SIZES = (16, 32, 64)
FREEZE_EPOCHS = (1, 3)


def suggest(trial: Trial, strategies: tuple[str, ...], epochs: int, fixed: dict[str, Any]) -> dict[str, Any]:
    """One configuration; what depends on another choice is asked for only where that was made."""
    strategy = trial.suggest_categorical("strategy", strategies)
    if strategy == "freeze_then_unfreeze":
        trial.suggest_int("freeze_epochs", FREEZE_EPOCHS[0], max(1, min(FREEZE_EPOCHS[1], epochs - 1)))
    clip_norm = 1.0 if strategy == "clip" else trial.suggest_categorical("clip_norm", CLIP_NORMS)
    optimizer = trial.suggest_categorical("optimizer", tuple(LEARNING_RATES))
    learning_rate = trial.suggest_float(f"{optimizer}_learning_rate", *LEARNING_RATES[optimizer], log=True)
    trial.suggest_categorical("schedule", SCHEDULES)
    trial.suggest_categorical("augmentation", AUGMENTATIONS)
    trial.suggest_categorical("mixing", MIXINGS)
    trial.suggest_categorical("loss", LOSSES)
    trial.suggest_float("weight_decay", *WEIGHT_DECAYS, log=True)
    trial.suggest_categorical("batch_size", BATCH_SIZES)
    return {"clip_norm": clip_norm, "learning_rate": learning_rate, **fixed}  # Tune adds the trial's own choices


def transforms(size: int, augmentation: str, mean: tuple[float, ...], std: tuple[float, ...]) -> v2.Compose:
    """From a photo to the network's input: its middle squashed to a square, augmented, normalised."""

    def squashed(image: Image.Image) -> Image.Image:
        left, top = image.width / 16, image.height / 16  # the middle 87.5% of each side
        return image.resize(
            (size, size), Image.Resampling.BICUBIC, box=(left, top, image.width - left, image.height - top)
        )

    augmented = {
        "none": [],
        "flip": [v2.RandomHorizontalFlip()],
        "randaugment": [v2.RandomHorizontalFlip(), v2.RandAugment(num_ops=2, magnitude=9)],
    }
    tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    return v2.Compose([squashed, *augmented[augmentation], *tensor])


def make_optimizer(model: nn.Module, config: dict[str, Any]) -> torch.optim.Optimizer:
    """The optimizer of a configuration; norms and biases are not decayed."""
    groups, rate = timm.optim.param_groups_weight_decay(model, config["weight_decay"]), config["learning_rate"]
    name = config["optimizer"]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=0.9)
    if name == "adam":
        return torch.optim.Adam(groups, lr=rate)
    if name == "radam":
        return torch.optim.RAdam(groups, lr=rate)
    ranger: torch.optim.Optimizer = timm.optim.Lookahead(
        torch.optim.RAdam(groups, lr=rate, betas=(0.95, 0.999), eps=1e-5), alpha=0.5, k=6
    )
    return ranger


def make_schedule(optimizer: torch.optim.Optimizer, config: dict[str, Any], steps: int) -> LRScheduler:
    """The schedule of a configuration, over so many steps."""
    if config["schedule"] == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    return OneCycleLR(optimizer, max_lr=config["learning_rate"], total_steps=steps, cycle_momentum=False)


def freeze(model: Any, frozen: bool) -> None:
    """Training mode; for a frozen body evaluation mode and no gradient, so that only the head learns."""
    for parameter in model.parameters():
        parameter.requires_grad_(not frozen)
    for parameter in model.get_classifier().parameters():
        parameter.requires_grad_(True)
    model.train(not frozen)


def evaluate_accuracy(model: nn.Module, loader: DataLoader[Any], layout: torch.memory_format) -> float:
    """The share of images put into the right class."""
    model.eval()
    hits = images = 0
    with torch.inference_mode():
        for pixels, labels in loader:
            hits += int((model(pixels.contiguous(memory_format=layout)).argmax(dim=1) == labels).sum())
            images += len(labels)
    return hits / images


def train(config: dict[str, Any], asked: dict[str, Any]) -> None:
    """One trial."""
    torch.set_num_threads(asked["threads"])
    torch.manual_seed(asked["seed"])
    data, size, epochs = Path(asked["data"]), asked["image_size"], asked["epochs"]
    strategy, batch_size = config["strategy"], config["batch_size"]
    network = timm.get_pretrained_cfg(asked["backbone"])
    train_set = ImageFolder(data / "train", transforms(size, config["augmentation"], network.mean, network.std))
    val_set = ImageFolder(data / "val", transforms(size, "none", network.mean, network.std))
    workers = {"num_workers": asked["workers"], "persistent_workers": asked["workers"] > 0}
    # A last batch of one image has no variance for batch norm.
    alone = len(train_set) % batch_size == 1
    train_loader = DataLoader(train_set, batch_size=batch_size, shuffle=True, drop_last=alone, **workers)
    val_loader = DataLoader(val_set, batch_size=64, **workers)

    classes = len(train_set.class_to_idx)  # cloudpickle mistakes an attribute `classes` for the module torch.classes
    local = {"pretrained": True, "pretrained_cfg_overlay": {"file": asked["weights"], "num_classes": 1000}}
    layout = torch.channels_last if asked["channels_last"] else torch.contiguous_format
    model = timm.create_model(asked["backbone"], num_classes=1000, **({} if strategy == "scratch" else local))
    # Not `num_classes=classes` above: timm draws the heads of MobileNets from +-1/sqrt(classes), for two classes so far
    # from 0 that a probe begins at a loss of 8 and stays at chance for many epochs.
    model.reset_classifier(classes)
    model = model.to(memory_format=layout)
    steps = epochs * len(train_loader)
    optimizer = make_optimizer(model, config)
    schedule = make_schedule(optimizer, config, steps)
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.1 if config["loss"] == "label_smoothing" else 0.0)
    cutmix = v2.CutMix(alpha=1.0, num_classes=classes) if config["mixing"] == "cutmix" else None
    frozen_epochs = epochs if strategy == "linear_probe" else config.get("freeze_epochs", 0)

    for epoch in range(epochs):
        freeze(model, epoch < frozen_epochs)
        began, losses = time.perf_counter(), []
        for pixels, labels in train_loader:
            pixels, labels = cutmix(pixels, labels) if cutmix else (pixels, labels)
            loss = loss_function(model(pixels.contiguous(memory_format=layout)), labels)
            optimizer.zero_grad()
            loss.backward()
            if config["clip_norm"] is not None:
                nn.utils.clip_grad_norm_(model.parameters(), config["clip_norm"])
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        seconds = time.perf_counter() - began
        tune.report(
            {
                "epoch": epoch + 1,
                "train_loss": float(torch.stack(losses).mean()),
                "val_accuracy": evaluate_accuracy(model, val_loader, layout),
                "images": len(train_set) - alone,
                "seconds": seconds,
                "finished_at": time.time(),
            }
        )


def make_searcher(asked: argparse.Namespace, fixed: dict[str, Any]) -> OptunaSearch:
    """Who proposes configurations."""
    tpe = TPESampler(multivariate=True, group=True, seed=asked.seed)
    sampler = tpe if asked.search == "optuna" else RandomSampler(seed=asked.seed)
    space = partial(suggest, strategies=tuple(asked.strategies.split(",")), epochs=asked.epochs, fixed=fixed)
    return OptunaSearch(space=space, sampler=sampler, metric="val_accuracy", mode="max")


class GoalStopper(Stopper):
    """Ends a search once enough trials have begun and one of all has come to a goal, or patience is at its end."""

    def __init__(self, goal: float, enough: int, until: float = math.inf) -> None:
        self._goal, self._enough, self._until = goal, enough, until
        self._best: dict[str, float] = {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Note a result; no trial is stopped by itself."""
        self._best[trial_id] = max(self._best.get(trial_id, 0.0), result["val_accuracy"])
        return False

    def stop_all(self) -> bool:
        """Whether everything is to end."""
        there = max(self._best.values(), default=0.0) >= self._goal
        return len(self._best) >= self._enough and (there or time.time() >= self._until)


def make_stopper(asked: argparse.Namespace) -> GoalStopper:
    """The end of a search that goes on: when so many have begun, those that `--trials` asks for have ended."""
    return GoalStopper(asked.goal, asked.trials + asked.concurrent, START_TIME + asked.patience)


def main() -> None:
    """Run the search; with `--json` also say, for machines, what came when."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder with train/<class> and val/<class>")
    parser.add_argument("--weights", required=True, type=Path, help="FILE for the backbone, with a head of 1,000")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--fix", default="{}", help='JSON of what is held fixed, as in {"optimizer": "sgd"}')
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--goal", type=float, help="go on after --trials until one has reached this accuracy")
    parser.add_argument("--patience", type=float, default=math.inf, help="with --goal: for so many seconds in all")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--search", choices=("optuna", "random"), default="optuna")
    parser.add_argument("--scheduler", choices=("asha", "none"), default="asha")
    parser.add_argument("--workers", type=int, default=1, help="loader processes per trial")
    parser.add_argument("--threads", type=int, default=1, help="torch's, per trial")
    parser.add_argument("--concurrent", type=int, default=os.cpu_count(), help="trials at a time")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage", type=Path, default=Path("runs/plain"))
    parser.add_argument("--json", type=Path, help="FILE for what came when")
    asked = parser.parse_args()
    asked.data, asked.weights, asked.storage = (path.resolve() for path in (asked.data, asked.weights, asked.storage))
    asked.storage.mkdir(parents=True, exist_ok=True)

    ray.init()
    ready = time.time()
    told = {name: getattr(asked, name) for name in ("backbone", "image_size", "epochs", "workers", "threads", "seed")}
    told |= {"data": str(asked.data), "weights": str(asked.weights), "channels_last": asked.channels_last}
    cpus = (os.cpu_count() or 1) / asked.concurrent
    halving = ASHAScheduler(
        metric="val_accuracy",
        mode="max",
        max_t=asked.epochs,
        grace_period=math.ceil(asked.epochs / 4),
        reduction_factor=3,
    )
    tracking = MLflowLoggerCallback(f"sqlite:///{asked.storage}/mlflow.db", experiment_name="plain")
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train, asked=told), {"cpu": cpus}),
        tune_config=tune.TuneConfig(
            search_alg=make_searcher(asked, json.loads(asked.fix)),
            scheduler=halving if asked.scheduler == "asha" else None,
            num_samples=asked.trials if asked.goal is None else -1,
            max_concurrent_trials=asked.concurrent,
        ),
        run_config=tune.RunConfig(
            name="plain",
            storage_path=str(asked.storage),
            callbacks=[tracking],
            stop=None if asked.goal is None else make_stopper(asked),
        ),
    )
    results = tuner.fit()
    print("best:", results.get_best_result("val_accuracy", "max", scope="all").config)
    if asked.json:
        written = {
            "began": START_TIME,
            "ready": ready,
            "ended": time.time(),
            "trials": [_told(each) for each in iter(results)],
        }
        asked.json.write_text(json.dumps(written))


def _told(result: Any) -> dict[str, Any]:
    """A trial for machines; times are seconds since 1970."""
    columns = ["epoch", "val_accuracy", "finished_at", "images", "seconds"]
    frame = result.metrics_dataframe
    epochs = [] if frame is None or frame.empty else frame[columns].to_dict("records")
    return {"config": result.config, "epochs": epochs, "error": str(result.error) if result.error else None}


if __name__ == "__main__":
    main()
