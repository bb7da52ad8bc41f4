"""`--backbone auto`: which networks it stands for, with and without a hub, and at a second start."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from sweeps.engine.plan import Plan
from sweeps.engine.planning import screening
from sweeps.engine.planning.panel import PanelRequest
from sweeps.engine.planning.plan_file import default_name, describe_plan, plan_differences
from sweeps.engine.planning.prepare import prepare
from sweeps.engine.planning.prepared import Prepared
from tests.engine.conftest import a_record
from tests.fake_hub import Hub, serve
from xfer.models.hub_weights import hub_cache
from xfer.models.panel import PANEL, PanelNetwork
from xfer.records import Record
from xfer.storage.object_store import as_path, upload

RATED, UNRATED, THIRD = "test_resnet.r160_in1k", "test_efficientnet.r160_in1k", "test_convnext.r160_in1k"


@pytest.fixture(autouse=True)
def small_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A panel of timm's tiny test networks."""
    for name in [*PANEL]:
        monkeypatch.delitem(PANEL, name)
    for name, top1 in ((RATED, 0.8), (THIRD, 0.7), (UNRATED, None)):
        license = "Some license" if top1 is None else ""
        network = PanelNetwork("small", "batch_norm", 0.4, 0.1, top1, 160 if top1 else None, "tiny", "timm", license)
        monkeypatch.setitem(PANEL, name, network)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No hub; the folder of its cache, which is empty."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights_of: Callable[[str], Path]) -> Iterator[Hub]:
    """A hub with the whole panel."""
    for name in (RATED, UNRATED, THIRD):
        repository = tmp_path / "hub" / "timm" / name
        repository.mkdir(parents=True)
        shutil.copy(weights_of(name.partition(".")[0]), repository / "model.safetensors")
    with serve(tmp_path / "hub") as hub:
        hub.use_in_process(monkeypatch, tmp_path / "cache")
        yield hub


@pytest.fixture
def folder(tmp_path: Path, weights_of: Callable[[str], Path]) -> Callable[..., str]:
    """Return a function that fills the folder of weights, and returns it."""

    def fill(*networks: str) -> str:
        (tmp_path / "weights").mkdir(exist_ok=True)
        for name in networks:
            shutil.copy(weights_of(name.partition(".")[0]), tmp_path / "weights" / f"{name}.safetensors")
        return str(tmp_path / "weights")

    return fill


Preparing = Callable[..., Prepared]


@pytest.fixture
def preparing(one_thread: None, make_plan: Callable[..., Plan], storage: Path) -> Preparing:
    """Prepares a plan with `--backbone auto`."""

    def prepare_plan(request: PanelRequest | None = None, **changes: Any) -> Prepared:
        few = {"strategies": ("clip", "linear_probe")}  # each is tried on every network, which takes most of the time
        plan = make_plan(**{"backbones": ("auto",), "weights": {}, **few, **changes})
        return prepare(plan, storage, panel_request=request or PanelRequest())

    return prepare_plan


def names(prepared: Prepared) -> list[str]:
    return [backbone.name for backbone in prepared.backbones]


def notes(prepared: Prepared) -> str:
    return "\n".join(prepared.notes)


def dropped(prepared: Prepared) -> dict[str, str]:
    return {item["name"]: item["reason"] for item in prepared.panel["dropped"]}


# --- without a hub ---------------------------------------------------------------------------------------------------


def test_offline_the_networks_of_a_folder_compete(
    offline: Path, preparing: Preparing, folder: Callable[..., str]
) -> None:
    prepared = preparing(weights={"": folder("test_efficientnet", "test_resnet", "test_vit")})
    assert names(prepared) == ["test_resnet", "test_efficientnet", "test_vit"], "the best on ImageNet comes first"
    assert prepared.panel["best_on_imagenet"] == "test_resnet"
    assert [item["reason"] for item in prepared.panel["chosen"]] == ["tiny", "tiny", "given by the user"]
    assert list(dropped(prepared)) == [THIRD]
    assert dropped(prepared)[THIRD] == (
        f"not given with --weights, not in the cache of the hub ({hub_cache()}), and not to be downloaded "
        f"(HF_HUB_OFFLINE is set)"
    )
    assert "test_resnet (80.0% on ImageNet, tiny)" in notes(prepared)
    assert f"--backbone auto leaves out {THIRD}: not given with --weights" in notes(prepared)
    assert "A license restricts the use of the weights of test_efficientnet (Some license)." in notes(prepared)


def test_offline_networks_named_with_their_weights_compete(
    offline: Path, preparing: Preparing, weights_of: Callable[[str], Path]
) -> None:
    weights = {name: str(weights_of(name)) for name in ("test_vit", "test_convnext")}
    assert names(preparing(weights=weights)) == ["test_convnext", "test_vit"]
    prepared = preparing(backbones=("AUTO", "test_vit"), weights=weights)
    assert names(prepared) == ["test_convnext", "test_vit"]


def test_weights_in_the_cache_of_the_hub_are_used_without_asking_it(
    hub: Hub, preparing: Preparing, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = preparing()
    asked = len(hub.requests)
    again = preparing()
    assert [*map(str, again.backbones)] == [*map(str, online.backbones)]
    assert len(hub.requests) == asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert names(preparing()) == [RATED, THIRD, UNRATED]
    assert {item["weights"] for item in again.panel["chosen"]} == {"the cache of the hub"}


def test_with_one_network_at_hand_the_sweep_continues_and_says_so(
    offline: Path, preparing: Preparing, folder: Callable[..., str]
) -> None:
    prepared = preparing(weights={"": folder("test_resnet")})
    assert names(prepared) == ["test_resnet"]
    assert "--backbone auto has nothing to compare test_resnet with. Weights are taken from" in notes(prepared)
    assert "test_convnext.r160_in1k and test_efficientnet.r160_in1k: not given" in notes(prepared)


def test_with_no_network_at_hand_the_error_says_what_was_looked_for_where_and_what_to_do(
    offline: Path, preparing: Preparing
) -> None:
    with pytest.raises(ValueError, match="no network of the panel for a CPU") as raised:
        preparing()
    message = str(raised.value)
    for part in (RATED, UNRATED, THIRD, hub_cache(), "HF_HUB_OFFLINE is set", "--weights DIR", "--weights NAME=FILE"):
        assert part in message


def test_a_file_whose_name_is_not_a_network_is_left_out_by_name(
    offline: Path, preparing: Preparing, folder: Callable[..., str]
) -> None:
    where = Path(folder("test_resnet", "test_vit"))
    (where / "best.pt").write_bytes(b"?")
    (where / "README.md").write_bytes(b"?")
    assert dropped(preparing(weights={"": str(where)}))["best.pt"] == ("the file is not named after a network of timm")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds no weights for --backbone auto: give a folder of files NAME.safetensors"),
        (["best.pt"], "best.pt: the file is not named after a network of timm"),
    ],
    ids=str,
)
def test_a_folder_without_weights_is_refused(
    offline: Path, preparing: Preparing, tmp_path: Path, files: list[str], message: str
) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"?")
    with pytest.raises(ValueError, match=message):
        preparing(weights={"": str(tmp_path)})


def test_a_single_file_or_a_folder_that_does_not_exist_is_refused(
    offline: Path, preparing: Preparing, weights_of: Callable[[str], Path], tmp_path: Path
) -> None:
    file = weights_of("test_resnet")
    with pytest.raises(ValueError, match=f"say which network the file belongs to: NAME={file}"):
        preparing(weights={"": str(file)})
    with pytest.raises(ValueError, match="nowhere: there is no such folder"):
        preparing(weights={"": str(tmp_path / "nowhere")})
    with pytest.raises(ValueError, match="there is no weights file"):
        preparing(weights={"test_resnet": str(tmp_path / "nowhere.pt")})


# --- with a hub ------------------------------------------------------------------------------------------------------


def test_the_sizes_are_told_before_the_download(
    hub: Hub, preparing: Preparing, weights_of: Callable[[str], Path]
) -> None:
    lines: list[tuple[str, int]] = []

    def on_download(line: str) -> None:
        lines.append((line, sum(request.startswith("GET") for request in hub.requests)))

    prepared = preparing(PanelRequest(on_download=on_download))
    assert names(prepared) == [RATED, THIRD, UNRATED]
    ((line, downloads),) = lines
    assert downloads == 0
    sizes = [weights_of(name.partition(".")[0]).stat().st_size / 1e6 for name in (RATED, THIRD, UNRATED)]
    assert line == (
        f"downloading the weights of 3 networks, {sum(sizes):.1f} MB in total, to {hub_cache()}: "
        f"{RATED} ({sizes[0]:.1f} MB), {THIRD} ({sizes[1]:.1f} MB), {UNRATED} ({sizes[2]:.1f} MB)"
    )


def test_a_network_that_cannot_be_downloaded_is_left_out(hub: Hub, preparing: Preparing, tmp_path: Path) -> None:
    (tmp_path / "hub" / "timm" / THIRD / "model.safetensors").unlink()
    shutil.rmtree(tmp_path / "hub" / "timm" / UNRATED)
    prepared = preparing()
    assert names(prepared) == [RATED]
    assert dropped(prepared) == {
        THIRD: "its repository on the hub has no file model.safetensors or pytorch_model.bin",
        UNRATED: "the hub does not hand out its weights: RepositoryNotFoundError (status 404)",
    }


def test_a_download_that_fails_after_it_has_started_leaves_out_the_network(hub: Hub, preparing: Preparing) -> None:
    preparing(backbones=("auto",))
    shutil.rmtree(constants.HF_HUB_CACHE)
    hub.unavailable.add("model.safetensors")
    with pytest.raises(ValueError, match="no network of the panel") as raised:
        preparing()
    assert f"{RATED}: the weights of {RATED} could not be downloaded from the hub" in str(raised.value)


def test_weights_that_do_not_fit_leave_out_the_network(
    hub: Hub, preparing: Preparing, tmp_path: Path, weights_of: Callable[[str], Path]
) -> None:
    shutil.copy(weights_of("test_vit"), tmp_path / "hub" / "timm" / THIRD / "model.safetensors")
    prepared = preparing()
    assert names(prepared) == [RATED, UNRATED]
    assert "does not fit" in dropped(prepared)[THIRD]


def test_a_network_that_cannot_be_built_for_these_images_is_not_downloaded(hub: Hub, preparing: Preparing) -> None:
    prepared = preparing(backbone_args={"ls_init_value": 1e-6}, backbones=("auto",))
    assert names(prepared) == [THIRD], "only a ConvNeXt takes this argument"
    assert "cannot be built with these arguments" in dropped(prepared)[RATED]
    assert {request.split("/")[2] for request in hub.requests if request.startswith("GET")} == {THIRD}


def test_a_network_that_the_user_named_is_not_left_out_silently(
    offline: Path, preparing: Preparing, folder: Callable[..., str]
) -> None:
    with pytest.raises(ValueError, match="--backbone test_vit cannot compete: not given with --weights"):
        preparing(backbones=("auto", "test_vit"), weights={"": folder("test_resnet")})


# --- what it cannot be combined with ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ({"strategy": "clip"},), "strategies": ()}, "compares fixed recipes, so name the network"),
        ({"strategies": ("scratch",)}, "compares pretrained weights, and scratch uses none"),
        ({"backbones": ("auto", "resnet181")}, "unknown backbone 'resnet181'"),
    ],
    ids=str,
)
def test_a_plan_that_has_no_use_for_a_panel_is_refused(
    offline: Path, preparing: Preparing, changes: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        preparing(**changes)


def test_images_have_224_pixels_by_default(offline: Path, preparing: Preparing, folder: Callable[..., str]) -> None:
    assert preparing(weights={"": folder("test_resnet")}, image_size=None).image_size == 224


# --- at a second start -----------------------------------------------------------------------------------------------


def started(prepared: Prepared) -> PanelRequest:
    """Return the request of a later start, to which the plan is stored."""
    plan = json.loads(json.dumps({**describe_plan(prepared), "name": "n", "provenance": {}}))
    return PanelRequest("large", {default_name(prepared): plan}.get)


def test_a_later_start_keeps_the_networks_although_more_are_at_hand_and_the_machine_is_another(
    offline: Path, preparing: Preparing, folder: Callable[..., str]
) -> None:
    first = preparing(weights={"": folder("test_resnet", "test_vit")})
    second = preparing(started(first), weights={"": folder("test_efficientnet")})
    assert names(second) == ["test_resnet", "test_vit"]
    assert plan_differences(describe_plan(first), describe_plan(second)) == []
    assert second.notes == first.notes
    assert names(preparing(weights={"": folder()})) == ["test_resnet", "test_efficientnet", "test_vit"]


def test_a_later_start_needs_no_hub(hub: Hub, preparing: Preparing, monkeypatch: pytest.MonkeyPatch) -> None:
    first = preparing()
    asked = len(hub.requests)
    assert names(preparing(started(first))) == names(first)
    assert len(hub.requests) == asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    shutil.rmtree(constants.HF_HUB_CACHE)
    with pytest.raises(
        ValueError, match=rf"this sweep was started with {RATED}, whose weights cannot be used .* --fresh"
    ):
        preparing(started(first))


def test_weights_that_have_changed_are_another_plan(
    offline: Path, preparing: Preparing, folder: Callable[..., str], weights_of: Callable[[str], Path]
) -> None:
    import safetensors.torch

    where = Path(folder("test_resnet", "test_vit"))
    first = preparing(weights={"": str(where)})
    tensors = safetensors.torch.load_file(weights_of("test_resnet"))
    tensors["conv1.0.weight"] += 1
    safetensors.torch.save_file(tensors, where / "test_resnet.safetensors")
    second = preparing(started(first), weights={"": str(where)})
    changes = plan_differences(describe_plan(first), describe_plan(second))
    assert [change.partition(":")[0] for change in changes] == ["backbones"]


def test_the_default_name_depends_on_what_was_asked_and_not_on_what_was_found(
    offline: Path, preparing: Preparing, folder: Callable[..., str]
) -> None:
    first = preparing(weights={"": folder("test_resnet")})
    second = preparing(weights={"": folder("test_vit")})
    assert names(first) != names(second)
    assert default_name(first) == default_name(second) != ""
    for changes in ({"keep_backbones": 2}, {"epochs": 5}, {"image_size": 40}, {"backbones": ("auto", "test_vit")}):
        assert default_name(preparing(**{"weights": {"": folder()}, **changes})) != default_name(first)
    assert default_name(preparing(weights={"": folder()}, trials=99, noise=False)) == default_name(first)


# --- screening -------------------------------------------------------------------------------------------------------


@pytest.fixture
def four(offline: Path, preparing: Preparing, folder: Callable[..., str]) -> Prepared:
    networks = ("test_resnet", "test_convnext", "test_efficientnet", "test_vit")
    return preparing(weights={"": folder(*networks)}, keep_backbones=2)


def heads(prepared: Prepared, accuracies: Mapping[str, float]) -> list[Record]:
    """Return a record of every head, with validation accuracies by backbone."""
    return [
        replace(
            a_record(trial.name, (accuracies[str(trial.recipe["backbone"])],), recipe=dict(trial.recipe)),
            phase="screen",
        )
        for trial in screening.screening_trials(prepared)
    ]


ACCURACIES = {"test_resnet": 0.3, "test_convnext": 0.5, "test_efficientnet": 0.6, "test_vit": 0.7}


def test_the_best_frozen_network_and_the_best_on_imagenet_are_both_fine_tuned(four: Prepared) -> None:
    decision = screening.screening_decision(four, heads(four, ACCURACIES))
    assert (decision["kept"], decision["dropped"]) == (
        ["test_vit", "test_resnet"],
        ["test_efficientnet", "test_convnext"],
    )
    assert (decision["best_frozen"], decision["best_on_imagenet"]) == ("test_vit", "test_resnet")
    assert screening.summary_line(decision) == (
        "test_vit has the best frozen features, and test_resnet the highest published accuracy on ImageNet; "
        "fine-tuned: test_vit, test_resnet; left out: test_efficientnet, test_convnext"
    )
    narrow = screening.narrow_space(four, decision)
    assert narrow.space.axes["backbone"].values == ("test_vit", "test_resnet")  # type: ignore[union-attr]


def test_if_one_network_is_the_best_of_both_kinds_the_second_best_frozen_one_is_fine_tuned_too(four: Prepared) -> None:
    decision = screening.screening_decision(four, heads(four, {**ACCURACIES, "test_resnet": 0.9}))
    assert decision["kept"] == ["test_resnet", "test_vit"]
    assert "test_resnet has both the best frozen features and the highest" in screening.summary_line(decision)


def test_all_networks_of_a_panel_are_screened_even_if_all_are_kept(
    offline: Path, preparing: Preparing, folder: Callable[..., str]
) -> None:
    prepared = preparing(weights={"": folder("test_vit", "test_efficientnet")})
    assert len(screening.screening_trials(prepared)) == 20
    decision = screening.screening_decision(prepared, heads(prepared, ACCURACIES))
    assert (decision["kept"], decision["dropped"]) == (["test_vit", "test_efficientnet"], [])
    assert screening.summary_line(decision) == (
        "test_vit has the best frozen features; no accuracy on ImageNet is published for any of these networks; "
        "fine-tuned: test_vit, test_efficientnet; left out: none"
    )


# --- weights in an object store --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_of_weights_may_be_in_an_object_store(
    offline: Path, preparing: Preparing, bucket: str, weights_of: Callable[[str], Path]
) -> None:
    for name in ("test_resnet", "test_vit"):
        upload(weights_of(name), as_path(f"{bucket}/weights/{name}.safetensors"))
    prepared = preparing(weights={"": f"{bucket}/weights"})
    assert names(prepared) == ["test_resnet", "test_vit"]
    assert all(backbone.file is not None and backbone.file.is_file() for backbone in prepared.backbones)
    with pytest.raises(ValueError, match="there is no such folder"):
        preparing(weights={"": f"{bucket}/nowhere"})
