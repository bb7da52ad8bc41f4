"""The script that one would write instead of this project, with Ray Tune, torchvision, timm, Optuna and MLflow.

    python -m benchmarks.plain --data DIR --weights FILE --trials 24 --epochs 8 --search optuna --scheduler asha

DIR contains train/<class>/*.jpg and val/<class>/*.jpg. The axes are those of COMPARED_SPACE in contestants.py, which
our side gets with --vary, and the ranges are the default ones (tests/test_benchmarks.py compares both). Photos are
cropped as in xfer/data/images.py. It is meant to be a good script: a frozen body is in evaluation mode and gets no
gradient, loader processes live as long as their trial, and the sampler models conditional parameters jointly. It keeps
the defaults that such scripts keep: `reuse_actors` is False, memory is allocated as usual, and images are in torch's
default memory format without `--channels-last`. It writes no checkpoints.
"""
# ruff: noqa: E402  (the clock starts before the imports, because a user waits for them too)

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
HEAD_RATE_FACTOR = 10  # a head alone learns at higher rates
SCHEDULES = ("onecycle", "cosine")
AUGMENTATIONS = ("flip", "none", "randaugment")
MIXINGS = ("none", "cutmix")
LOSSES = ("cross_entropy", "label_smoothing")
WEIGHT_DECAYS = (1e-6, 1e-2)
BATCH_SIZES = (16, 32, 64)
FREEZE_EPOCHS = (1, 3)


def suggest(trial: Trial, strategies: tuple[str, ...], epochs: int, fixed: dict[str, Any]) -> dict[str, Any]:
    """Suggest one configuration; conditional parameters are suggested only if their condition holds."""
    strategy = trial.suggest_categorical("strategy", strategies)
    if strategy == "freeze_then_unfreeze":
        trial.suggest_int("freeze_epochs", FREEZE_EPOCHS[0], max(1, min(FREEZE_EPOCHS[1], epochs - 1)))
    clip_norm = 1.0 if strategy == "clip" else trial.suggest_categorical("clip_norm", CLIP_NORMS)
    optimizer = trial.suggest_categorical("optimizer", tuple(LEARNING_RATES))
    low, high = LEARNING_RATES[optimizer]
    factor, prefix = (HEAD_RATE_FACTOR, "head_") if strategy == "linear_probe" else (1, "")
    rates = (factor * low, factor * high)
    learning_rate = trial.suggest_float(f"{prefix}{optimizer}_learning_rate", *rates, log=True)
    trial.suggest_categorical("schedule", SCHEDULES)
    trial.suggest_categorical("augmentation", AUGMENTATIONS)
    trial.suggest_categorical("mixing", MIXINGS)
    trial.suggest_categorical("loss", LOSSES)
    trial.suggest_float("weight_decay", *WEIGHT_DECAYS, log=True)
    trial.suggest_categorical("batch_size", BATCH_SIZES)
    return {"clip_norm": clip_norm, "learning_rate": learning_rate, **fixed}  # Tune adds the suggested parameters


def transforms(size: int, augmentation: str, mean: tuple[float, ...], std: tuple[float, ...]) -> v2.Compose:
    """Preprocess a photo: resize the center to a square, augment, normalize."""

    def resize_center(image: Image.Image) -> Image.Image:
        left, top = image.width / 16, image.height / 16  # keeps the central 87.5% of each side
        return image.resize(
            (size, size), Image.Resampling.BICUBIC, box=(left, top, image.width - left, image.height - top)
        )

    augmentations = {
        "none": [],
        "flip": [v2.RandomHorizontalFlip()],
        "randaugment": [v2.RandomHorizontalFlip(), v2.RandAugment(num_ops=2, magnitude=9)],
    }
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    return v2.Compose([resize_center, *augmentations[augmentation], *to_tensor])


def make_optimizer(model: nn.Module, config: dict[str, Any]) -> torch.optim.Optimizer:
    """Build the optimizer; norms and biases have no weight decay."""
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
    """Build the learning-rate schedule over `steps` steps."""
    if config["schedule"] == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    return OneCycleLR(optimizer, max_lr=config["learning_rate"], total_steps=steps, cycle_momentum=False)


def freeze(model: Any, frozen: bool) -> None:
    """Set training mode, or freeze the body: evaluation mode and no gradient, so only the head learns."""
    for parameter in model.parameters():
        parameter.requires_grad_(not frozen)
    for parameter in model.get_classifier().parameters():
        parameter.requires_grad_(True)
    model.train(not frozen)


def evaluate_accuracy(model: nn.Module, loader: DataLoader[Any], layout: torch.memory_format) -> float:
    """The fraction of images that are classified correctly."""
    model.eval()
    hits = images = 0
    with torch.inference_mode():
        for pixels, labels in loader:
            hits += int((model(pixels.contiguous(memory_format=layout)).argmax(dim=1) == labels).sum())
            images += len(labels)
    return hits / images


def train(config: dict[str, Any], options: dict[str, Any]) -> None:
    """Train one trial and report every epoch to Tune."""
    torch.set_num_threads(options["threads"])
    torch.manual_seed(options["seed"])
    data, size, epochs = Path(options["data"]), options["image_size"], options["epochs"]
    strategy, batch_size = config["strategy"], config["batch_size"]
    network = timm.get_pretrained_cfg(options["backbone"])
    train_set = ImageFolder(data / "train", transforms(size, config["augmentation"], network.mean, network.std))
    val_set = ImageFolder(data / "val", transforms(size, "none", network.mean, network.std))
    workers = {"num_workers": options["workers"], "persistent_workers": options["workers"] > 0}
    # Batch norm has no variance in a last batch of one image.
    drop_last = len(train_set) % batch_size == 1
    train_loader = DataLoader(train_set, batch_size=batch_size, shuffle=True, drop_last=drop_last, **workers)
    val_loader = DataLoader(val_set, batch_size=64, **workers)

    classes = len(train_set.class_to_idx)  # cloudpickle mistakes an attribute `classes` for the module torch.classes
    pretrained = {"pretrained": True, "pretrained_cfg_overlay": {"file": options["weights"], "num_classes": 1000}}
    layout = torch.channels_last if options["channels_last"] else torch.contiguous_format
    model = timm.create_model(options["backbone"], num_classes=1000, **({} if strategy == "scratch" else pretrained))
    # Not `num_classes=classes` above: timm draws the heads of MobileNets from +-1/sqrt(classes), for two classes so far
    # from 0 that a probe starts at a loss of 8 and stays at chance for many epochs.
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
        started_at, losses = time.perf_counter(), []
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
        seconds = time.perf_counter() - started_at
        tune.report(
            {
                "epoch": epoch + 1,
                "train_loss": float(torch.stack(losses).mean()),
                "val_accuracy": evaluate_accuracy(model, val_loader, layout),
                "images": len(train_set) - drop_last,
                "seconds": seconds,
                "finished_at": time.time(),
            }
        )


def make_searcher(args: argparse.Namespace, fixed: dict[str, Any]) -> OptunaSearch:
    """Build the search algorithm."""
    tpe = TPESampler(multivariate=True, group=True, seed=args.seed)
    sampler = tpe if args.search == "optuna" else RandomSampler(seed=args.seed)
    space = partial(suggest, strategies=tuple(args.strategies.split(",")), epochs=args.epochs, fixed=fixed)
    return OptunaSearch(space=space, sampler=sampler, metric="val_accuracy", mode="max")


class GoalStopper(Stopper):
    """Ends a search when enough trials have started and one has reached the goal, or time is up.

    Args:
        goal: validation accuracy to reach.
        min_trials: minimum number of trials with a first result.
        deadline: time at which to give up, in seconds since 1970.
    """

    def __init__(self, goal: float, min_trials: int, deadline: float = math.inf) -> None:
        self._goal, self._min_trials, self._deadline = goal, min_trials, deadline
        self._best: dict[str, float] = {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Record a result; never stops a single trial."""
        self._best[trial_id] = max(self._best.get(trial_id, 0.0), result["val_accuracy"])
        return False

    def stop_all(self) -> bool:
        """Whether to end the whole search."""
        reached = max(self._best.values(), default=0.0) >= self._goal
        return len(self._best) >= self._min_trials and (reached or time.time() >= self._deadline)


def make_stopper(args: argparse.Namespace) -> GoalStopper:
    """Build the stopper for `--goal`. Of the first `trials + concurrent` trials, `trials` have then ended."""
    return GoalStopper(args.goal, args.trials + args.concurrent, START_TIME + args.patience)


def main() -> None:
    """Run the search; with `--json` also write every result with its time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder with train/<class> and val/<class>")
    parser.add_argument(
        "--weights", required=True, type=Path, help="FILE of the backbone, with a head of 1,000 classes"
    )
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--fix", default="{}", help='fixed parameters as JSON, as in {"optimizer": "sgd"}')
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--goal", type=float, help="continue after --trials until a trial reaches this accuracy")
    parser.add_argument("--patience", type=float, default=math.inf, help="with --goal: maximum total seconds")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--search", choices=("optuna", "random"), default="optuna")
    parser.add_argument("--scheduler", choices=("asha", "none"), default="asha")
    parser.add_argument("--workers", type=int, default=1, help="loader processes per trial")
    parser.add_argument("--threads", type=int, default=1, help="torch threads per trial")
    parser.add_argument("--concurrent", type=int, default=os.cpu_count(), help="concurrent trials")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage", type=Path, default=Path("runs/plain"))
    parser.add_argument("--json", type=Path, help="FILE for all results with their times")
    args = parser.parse_args()
    args.data, args.weights, args.storage = (path.resolve() for path in (args.data, args.weights, args.storage))
    args.storage.mkdir(parents=True, exist_ok=True)

    ray.init()
    ready = time.time()
    options = {name: getattr(args, name) for name in ("backbone", "image_size", "epochs", "workers", "threads", "seed")}
    options |= {"data": str(args.data), "weights": str(args.weights), "channels_last": args.channels_last}
    cpus = (os.cpu_count() or 1) / args.concurrent
    asha = ASHAScheduler(
        metric="val_accuracy",
        mode="max",
        max_t=args.epochs,
        grace_period=math.ceil(args.epochs / 4),
        reduction_factor=3,
    )
    tracking = MLflowLoggerCallback(f"sqlite:///{args.storage}/mlflow.db", experiment_name="plain")
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train, options=options), {"cpu": cpus}),
        tune_config=tune.TuneConfig(
            search_alg=make_searcher(args, json.loads(args.fix)),
            scheduler=asha if args.scheduler == "asha" else None,
            num_samples=args.trials if args.goal is None else -1,
            max_concurrent_trials=args.concurrent,
        ),
        run_config=tune.RunConfig(
            name="plain",
            storage_path=str(args.storage),
            callbacks=[tracking],
            stop=None if args.goal is None else make_stopper(args),
        ),
    )
    results = tuner.fit()
    print("best:", results.get_best_result("val_accuracy", "max", scope="all").config)
    if args.json:
        results_json = {
            "began": START_TIME,
            "ready": ready,
            "ended": time.time(),
            "trials": [_trial_json(result) for result in iter(results)],
        }
        args.json.write_text(json.dumps(results_json))


def _trial_json(result: Any) -> dict[str, Any]:
    """Convert a trial to JSON types; times are seconds since 1970."""
    columns = ["epoch", "val_accuracy", "finished_at", "images", "seconds"]
    frame = result.metrics_dataframe
    epochs = [] if frame is None or frame.empty else frame[columns].to_dict("records")
    return {"config": result.config, "epochs": epochs, "error": str(result.error) if result.error else None}


if __name__ == "__main__":
    main()
