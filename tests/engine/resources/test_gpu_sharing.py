"""How many trials fit on a card: shares, shapes, probes that are kept, and what a process is held to; without a GPU."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from sweeps.engine.resources import gpu_sharing, memory_probe
from sweeps.engine.resources.gpu_sharing import (
    CONTEXT_BYTES,
    MARGIN,
    SHARES,
    Probe,
    Shape,
    Shares,
    cap_of,
    shape_of,
    share_of,
)
from sweeps.engine.resources.memory_probe import Kind, place_of, probe_each, probed, read, write
from sweeps.engine.storage.store import Trial
from sweeps.engine.sweep import Means, Sweep
from sweeps.engine.trials import ray_tune, trainable
from sweeps.engine.trials.trainable import Site, config_for
from xfer.methods.strategies import STRATEGIES

GIGABYTE = 2**30
CARDS = {"H100": 80 * GIGABYTE, "T4": 16 * GIGABYTE, "laptop": 4 * GIGABYTE}
"""A table of cards that are not here."""
H100 = Kind("H100", CARDS["H100"], "bfloat16")


class FakeCard:
    """Says that so many bytes were used, and what it was asked, in order."""

    device = torch.device("cpu")

    def __init__(self, *answers: int) -> None:
        self.asked: list[str] = []
        self._answers = iter(answers)

    def begin(self) -> None:
        self.asked.append("begin")

    def wait(self) -> None:
        self.asked.append("wait")

    def most_bytes(self) -> int:
        self.asked.append("bytes")
        return next(self._answers)


# Shares


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_a_share_is_the_smallest_that_holds_the_need_and_its_margin_over_the_whole_range(card: int) -> None:
    for thousandth in range(1201):
        needed = card * thousandth // 1000
        share = share_of(needed, card)
        assert share in SHARES
        wanted = needed * (1 + MARGIN) / card
        assert share == min((each for each in SHARES if each >= wanted), default=1.0)


def test_shares_change_exactly_where_the_margin_begins() -> None:
    for smaller, larger in pairwise(SHARES):
        edge = int(Fraction(smaller) * CARDS["H100"] / Fraction(str(1 + MARGIN)))
        assert share_of(edge - 1, CARDS["H100"]) == smaller
        assert share_of(edge + 2, CARDS["H100"]) == larger


def test_nothing_takes_the_smallest_share_and_what_no_card_holds_takes_a_whole_one() -> None:
    assert share_of(0, CARDS["T4"]) == 0.125
    assert share_of(10 * CARDS["T4"], CARDS["T4"]) == 1.0
    for needed, card in ((-1, 1), (1, 0), (1, -5)):
        with pytest.raises(ValueError, match="there is no such share"):
            share_of(needed, card)


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_processes_held_to_their_shares_fit_on_a_card_together_with_what_they_hold_beside(card: int) -> None:
    for share in SHARES[:-1]:
        cap = cap_of(share, card)
        assert 0 < cap <= share
        if share * card >= 2 * CONTEXT_BYTES:
            assert (cap * card + CONTEXT_BYTES) / share <= card * (1 + 1e-9)
    assert cap_of(1.0, card) == cap_of(2.0, card) == 1.0


@pytest.mark.parametrize("share", SHARES[:-1])
def test_what_a_probe_saw_fits_under_the_cap_that_follows_from_it(share: float) -> None:
    card = CARDS["H100"]
    needed = int(share * card / (1 + MARGIN)) - 1  # the most that gets this share
    assert share_of(needed, card) == share
    assert needed - CONTEXT_BYTES < cap_of(share, card) * card


# Shapes


def test_what_has_no_say_in_the_memory_has_none_in_the_shape(make_recipe: Any) -> None:
    shape = shape_of(make_recipe())
    for change in (
        {"learning_rate": 0.5},
        {"optimizer": "adam"},
        {"augmentation": "randaugment"},
        {"mixing": "cutmix"},
        {"loss": "focal"},
        {"schedule": "onecycle"},
        {"seed": 3},
        {"epochs": 7},
        {"strategy": "clip"},
        {"strategy": "scratch"},
        {"strategy": "freeze_then_unfreeze"},
        {"strategy": "layer_decay"},
        {"strategy": "l2_sp"},
    ):
        assert shape_of(make_recipe(**{"epochs": 4, **change})) == shape, change


def test_what_has_a_say_in_the_memory_makes_another_shape(make_recipe: Any) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"batch_size": 16},
        {"image_size": 64},
        {"backbone": "test_resnet"},
        {"colour": "grey_stem"},
        {"activation": "mish"},
        {"head": "mlp"},
        {"backbone_args": {"drop_path_rate": 0.1}},
        {"strategy": "linear_probe"},
        {"strategy": {"name": "train_last", "blocks": 1}},
        {"strategy": {"name": "train_last", "blocks": 2}},
        {"strategy": "bitfit"},
        {"strategy": {"name": "early_cut", "stage": 2}},
    ]
    shapes = Counter(shape_of(make_recipe(**change)) for change in changes)
    assert set(shapes.values()) == {1}
    assert len(shapes) == len(changes)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in ("lora", "drop_early")])
def test_every_strategy_has_a_shape(make_recipe: Any, strategy: str) -> None:
    shape = shape_of(make_recipe(strategy=strategy, epochs=4))
    assert 0 < shape.moving <= shape.parameters


def test_a_head_in_closed_form_has_the_shape_of_one_that_is_trained(make_recipe: Any) -> None:
    probe = shape_of(make_recipe(strategy="linear_probe", batch_size=64))
    assert {shape_of(make_recipe(strategy=how)) for how in ("ridge_probe", "logistic_probe")} == {probe}


def test_a_shape_says_what_is_frozen_and_what_moves(make_recipe: Any, make_run: Any) -> None:
    whole = shape_of(make_recipe())
    probe = shape_of(make_recipe(strategy="linear_probe"))
    upper = shape_of(make_recipe(strategy={"name": "train_last", "blocks": 2}))
    record = make_run(make_recipe()).record()
    assert (whole.frozen_blocks, whole.parameters, whole.moving) == (0, record.parameters, record.trainable_parameters)
    assert probe.moving == make_run(make_recipe(strategy="linear_probe")).record().trainable_parameters
    assert upper.frozen_blocks == probe.frozen_blocks - 2 > 0


def test_a_larger_shape_holds_a_smaller_one_and_not_the_other_way_round(make_recipe: Any) -> None:
    def shape(**changes: Any) -> Shape:
        return shape_of(make_recipe(**changes))

    whole = shape(batch_size=16)
    for smaller in (
        shape(batch_size=8),
        shape(batch_size=16, strategy="linear_probe"),
        shape(batch_size=16, strategy={"name": "train_last", "blocks": 1}),
        shape(batch_size=16, strategy={"name": "early_cut", "stage": 2}),
    ):
        assert whole.holds(smaller)
        assert not smaller.holds(whole)
    assert whole.holds(whole)
    for other in (shape(image_size=16, batch_size=16), shape(activation="mish"), shape(backbone="test_vit")):
        assert not whole.holds(other)
        assert not other.holds(whole)


# Probes


def test_a_probe_is_two_steps_and_a_judged_batch_and_everything_is_waited_for(
    make_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, ...]] = []
    real = memory_probe.Learner.step

    def step(learner: Any, inputs: torch.Tensor, *others: Any) -> Any:
        steps.append(tuple(inputs.shape))
        return real(learner, inputs, *others)

    monkeypatch.setattr(memory_probe.Learner, "step", step)
    card = FakeCard(3 * GIGABYTE)
    recipe = make_recipe(batch_size=4, optimizer="adam", mixing="cutmix", strategy="freeze_then_unfreeze", epochs=4)
    probe = memory_probe.measure(recipe, card, "float32")
    assert steps == [(4, 3, 32, 32)] * 2
    assert card.asked == ["begin", *["wait"] * 5, "bytes"]
    assert (probe.shape, probe.bytes) == (shape_of(recipe), 3 * GIGABYTE)
    assert probe.seconds > 0


def test_a_strategy_that_frees_its_body_later_is_probed_as_it_is_then(make_recipe: Any) -> None:
    recipe = make_recipe(strategy={"name": "freeze_then_unfreeze", "freeze_epochs": 3}, epochs=4)
    learner = memory_probe.Learner(gpu_sharing.usual(recipe), None, torch.device("cpu"))
    learner.set_pace(gpu_sharing.fullest(recipe))
    assert all(parameter.requires_grad for parameter in learner.model.parameters())


def test_a_probe_comes_back_as_it_was_kept(tmp_path: Path, make_recipe: Any) -> None:
    probe = Probe(shape_of(make_recipe()), 12345, 0.25)
    path = place_of(tmp_path / "probes", probe.shape, H100)
    assert read(path) is None
    write(path, probe)
    assert read(path) == probe


def test_another_card_shape_or_precision_is_another_probe(tmp_path: Path, make_recipe: Any) -> None:
    shape = shape_of(make_recipe())
    kinds = [H100, replace(H100, name="A100"), replace(H100, bytes=1), replace(H100, precision="float32")]
    places = {place_of(tmp_path, shape, kind) for kind in kinds}
    places.add(place_of(tmp_path, replace(shape, batch_size=99), H100))
    assert len(places) == 5


def test_each_shape_is_probed_once_and_never_again(tmp_path: Path, make_recipe: Any) -> None:
    recipes = [
        make_recipe(strategy=strategy, batch_size=batch_size, learning_rate=rate)
        for strategy in ("naive", "clip", "linear_probe")
        for batch_size in (4, 8)
        for rate in (0.1, 0.2)
    ]
    calls: list[Any] = []

    def call(function: Any, arguments: list[tuple[Any, ...]]) -> None:
        assert function is memory_probe.probe_on_card
        for folder, kind, given in arguments:
            calls.append([each["batch_size"] for each in given])
            built = [memory_probe.recipe_from(each) for each in given]
            probe_each(Path(folder), Kind(**kind), built, FakeCard(*range(GIGABYTE, 9 * GIGABYTE, GIGABYTE)))

    float32 = replace(H100, precision="float32")
    shares = probed(recipes, tmp_path, float32, call)
    assert calls == [[4, 8, 4, 8]]  # one task for the backbone; naive and clip are one shape
    assert len(list(tmp_path.glob("*.json"))) == 4
    assert probed(recipes, tmp_path, float32, call) == shares
    assert len(calls) == 1


def test_one_that_cannot_be_probed_is_left_out_and_gets_a_card(
    tmp_path: Path, make_recipe: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(FakeCard):
        def wait(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access")

    shares = probed(
        [make_recipe()],
        tmp_path,
        replace(H100, precision="float32"),
        lambda function, calls: probe_each(tmp_path, replace(H100, precision="float32"), [make_recipe()], Broken()),
    )
    assert shares.probes == []
    assert shares.of(make_recipe().as_dict()) == shares.smallest() == 1.0
    assert "could not be probed" in caplog.text


def test_a_trial_takes_its_share_from_the_smallest_probe_that_holds_it(make_recipe: Any) -> None:
    whole, half = shape_of(make_recipe(batch_size=64)), shape_of(make_recipe(batch_size=32))
    probes = [Probe(whole, 30 * GIGABYTE, 0.1), Probe(half, 15 * GIGABYTE, 0.1)]
    shares = Shares(probes, CARDS["H100"])

    def share(**changes: Any) -> float:
        return shares.of(make_recipe(**changes).as_dict())

    assert share(batch_size=64) == 0.5
    assert share(batch_size=48) == 0.5
    assert share(batch_size=32, learning_rate=0.3, optimizer="adam") == 0.25
    assert share(batch_size=16, strategy="linear_probe") == 0.25
    assert share(batch_size=65) == 1.0, "nothing so large was probed"
    assert share(batch_size=16, backbone="test_vit") == 1.0
    assert shares.smallest() == 0.25


# Compiling


def test_compiling_is_worth_it_where_it_saves_twice_what_it_costs(make_recipe: Any) -> None:
    needed = 2 * gpu_sharing.COMPILE_SECONDS / gpu_sharing.SAVED
    steady = make_recipe()
    assert not gpu_sharing.worth_compiling(steady, 1000, needed / 1000)
    assert gpu_sharing.worth_compiling(steady, 1001, needed / 1000)
    changing = make_recipe(strategy={"name": "freeze_then_unfreeze", "freeze_epochs": 2}, epochs=4)
    assert not gpu_sharing.worth_compiling(changing, 10**9, 1.0), "it would compile twice"


def test_only_what_was_probed_itself_is_compiled(make_recipe: Any) -> None:
    recipe = make_recipe(batch_size=32, epochs=10)
    shares = Shares([Probe(shape_of(recipe), GIGABYTE, 0.1)], CARDS["H100"])
    assert shares.compiled(recipe.as_dict(), images=100_000)  # 31,250 steps of 0.1 s
    assert not shares.compiled(recipe.as_dict(), images=1_000)
    assert not shares.compiled(make_recipe(batch_size=16, epochs=10).as_dict(), images=100_000)


# What a process is held to


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """A GPU of 80 gigabytes that notes what a process is held to."""
    held: list[tuple[float, int]] = []
    properties = type("Properties", (), {"name": "H100", "total_memory": CARDS["H100"]})()
    monkeypatch.setattr(trainable, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: held.append((share, device))
    )
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    return held


def test_a_process_is_held_to_the_share_of_each_trial_anew(fake_gpu: list[tuple[float, int]]) -> None:
    for share in (0.5, 1.0, 0.125):
        assert trainable.confine(share) == torch.device("cuda")
    assert fake_gpu == [(cap_of(share, CARDS["H100"]), 0) for share in (0.5, 1.0, 0.125)]
    assert fake_gpu[1] == (1.0, 0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_trial_without_a_gpu_sees_none(fake_gpu: list[tuple[float, int]]) -> None:
    assert trainable.confine(0.0) == torch.device("cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert fake_gpu == []


def test_the_kind_of_card_is_what_torch_says_of_the_first(fake_gpu: list[tuple[float, int]]) -> None:
    assert memory_probe.kind_here() == H100


# In a sweep


def test_ray_is_asked_for_the_share_that_a_trials_site_says() -> None:
    site = Site("sweep", "pack", None, threads=2, gpus=0.25)
    config = config_for(Trial("0000", "search", {}, {}), site)
    assert ray_tune.resources_of(ray_tune._written(config)).required_resources == {"CPU": 2, "GPU": 0.25}
    two = config_for(Trial("0000", "search", {}, {}), replace(site, gpus=2.0))
    assert ray_tune.resources_of(ray_tune._written(two)).bundles == [{"CPU": 2, "GPU": 2}]  # one bundle is of one node
    nothing = config_for(Trial("0000", "search", {}, {}), replace(site, gpus=0.0))
    assert ray_tune.resources_of(ray_tune._written(nothing)).required_resources == {"CPU": 2}


@pytest.mark.parametrize(("packs", "expected"), [(True, 0.25), (False, 1.0)])
def test_a_share_that_was_asked_for_overrides_all_probes(
    packs: bool, expected: float, make_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    shares = Shares([Probe(shape_of(make_recipe(batch_size=32)), 15 * GIGABYTE, 0.1)], CARDS["H100"])
    monkeypatch.setattr(ray_tune, "connect", lambda: None)
    monkeypatch.setattr(ray_tune, "places", lambda share: asked.append(share) or int(4 / share.gpus))
    monkeypatch.setattr(Sweep, "_probed", lambda sweep: asked.append("probed") or shares)
    sweep = Sweep.__new__(Sweep)
    sweep._means = Means(share=trainable.Share(1, 1.0), packs=packs, tracking_uri="")
    sweep._shares = None
    sweep._proposer = None
    sweep._connect()
    assert asked.pop() == trainable.Share(1, 1.0)  # while backbones are screened, nobody knows which are trained
    assert "probed" not in asked
    sweep._proposer = "somebody"  # type: ignore[assignment]
    sweep._connect()
    sweep._connect()
    assert asked.count("probed") == int(packs)
    assert asked[-1] == trainable.Share(1, expected)
    assert sweep._concurrent == 4 / expected
    assert sweep._gpus_of(Trial("0000", "search", {}, make_recipe().as_dict())) == expected
