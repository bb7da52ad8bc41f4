"""Prices of machines, the cost of a sweep over its starts, and how a cost budget ends a search."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from sweeps.engine.console.progress import ProgressView
from sweeps.engine.resources.cost import CostLedger, CostTracker
from sweeps.engine.resources.prices import (
    LOCAL_NODE_TYPE,
    UNKNOWN_PRICES,
    Machine,
    Price,
    Prices,
    check_cost_budget,
    parse_prices,
)
from sweeps.engine.storage.store import Store
from tests.engine.conftest import a_plan

if TYPE_CHECKING:
    from sweeps.engine.plan import Plan
    from sweeps.engine.planning.prepared import Prepared
    from sweeps.engine.resources.budget import Budget
    from sweeps.engine.trials.placement import Placement

L4, A10G, HEAD = Machine("l4", 0.36), Machine("a10g", 0.72), Machine("head", 0.18)


class Cluster:
    """A fake cluster whose machines come and go, with a fake clock; records printed lines."""

    def __init__(self) -> None:
        self.up: list[Machine] = []
        self.now = 1_000.0
        self.printed: list[str] = []
        self.answers = True

    def machines(self) -> Sequence[Machine]:
        if not self.answers:
            raise ConnectionError("the head is gone")
        return list(self.up)

    def tracker(self, store: Store, prices: Prices = UNKNOWN_PRICES) -> CostTracker:
        return CostTracker(store, prices, self.machines, self.printed.append, clock=lambda: self.now)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "colours")
    store.put_plan(a_plan())
    return store


# --- prices -----------------------------------------------------------------------------------------------------------


def test_given_prices_override_labels_and_may_be_one_for_all_machines() -> None:
    by_type, every = parse_prices("l4=0.5"), parse_prices("0.40")
    assert [by_type.of(machine) for machine in (L4, HEAD, Machine("x"))] == [
        Price(0.5, "--prices"),
        Price(0.18, "label"),
        None,
    ]
    assert [every.of(machine) for machine in (L4, Machine(LOCAL_NODE_TYPE))] == 2 * [Price(0.4, "--prices")]


@pytest.mark.parametrize("text", ["l4", "=1", "l4=", "l4=-1", "l4=nan", "l4=inf", "l4=20000", "l4=1,l4=2", "1,2"])
def test_an_invalid_price_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=f"--prices {text}"):
        parse_prices(text)


def test_a_cluster_may_have_unknown_prices_but_this_machine_needs_one() -> None:
    check_cost_budget(parse_prices("l4=0.35"), 20.0, joins=True)
    check_cost_budget(UNKNOWN_PRICES, 20.0, joins=True)
    check_cost_budget(parse_prices("0.40"), 20.0, joins=False)
    check_cost_budget(UNKNOWN_PRICES, None, joins=False)
    with pytest.raises(ValueError, match="the price of this machine is unknown"):
        check_cost_budget(UNKNOWN_PRICES, 20.0, joins=False)
    with pytest.raises(ValueError, match="names l4, node types of a cluster"):
        check_cost_budget(parse_prices("l4=0.35"), None, joins=False)


# --- the ledger -------------------------------------------------------------------------------------------------------


def test_a_machine_is_charged_from_its_first_poll_to_the_first_poll_without_it() -> None:
    ledger = CostLedger()
    ledger.update([HEAD], 100.0)
    ledger.update([HEAD, L4, L4], 110.0)
    ledger.update([HEAD, L4], 120.0)
    ledger.update([HEAD], 150.0)
    ledger.advance_to(200.0)
    seconds = {entry["node_type"]: entry["seconds"] for entry in ledger.as_dicts()}
    assert seconds == {"head": 100.0, "l4": 10.0 * 2 + 30.0}


def test_the_hourly_price_is_that_of_the_machines_that_are_up() -> None:
    ledger = CostLedger(parse_prices("l4=1.5"))
    ledger.update([HEAD, L4, L4, Machine("nameless")], 0.0)
    assert ledger.usd_per_hour == pytest.approx(0.18 + 2 * 1.5)
    ledger.update([HEAD], 5.0)
    assert ledger.usd_per_hour == 0.18


# --- the tracker ------------------------------------------------------------------------------------------------------


def test_the_cost_is_stored_about_once_a_minute_and_at_the_end(cluster: Cluster, store: Store) -> None:
    cluster.up = [L4]
    with cluster.tracker(store) as tracker:
        assert [start["machines"][0]["seconds"] for start in store.spending()] == [0.0]
        cluster.now += 59
        tracker.poll()
        assert [start["machines"][0]["seconds"] for start in store.spending()] == [0.0]
        cluster.now += 1
        tracker.poll()
        assert [start["machines"][0]["seconds"] for start in store.spending()] == [60.0]
        cluster.now += 40
    assert store.spending() == [
        {"machines": [{"node_type": "l4", "usd_per_hour": 0.36, "from": "label", "seconds": 100.0}]}
    ]


def test_the_cost_of_starts_adds_up_and_each_keeps_its_price(cluster: Cluster, store: Store) -> None:
    cluster.up = [L4]
    with cluster.tracker(store) as tracker:
        cluster.now += 3600
        assert tracker.spent() == 0.36
    with cluster.tracker(store, parse_prices("l4=0.5")) as tracker:
        assert tracker.spent() == 0.36
        cluster.now += 7200
        assert tracker.spent() == pytest.approx(1.36)
    assert [start["machines"][0]["usd_per_hour"] for start in store.spending()] == [0.36, 0.5]


def test_the_next_start_counts_what_a_killed_driver_has_stored(cluster: Cluster, store: Store) -> None:
    cluster.up = [L4]
    killed = cluster.tracker(store)
    killed.poll()
    cluster.now += 3600
    killed.poll()
    cluster.now += 30  # killed before these are stored
    assert cluster.tracker(store).spent() == 0.36


def test_while_a_cluster_does_not_answer_the_machines_of_the_last_poll_are_charged(
    cluster: Cluster, store: Store
) -> None:
    cluster.up = [HEAD]
    with cluster.tracker(store) as tracker:
        cluster.answers = False
        cluster.now += 3600
        tracker.poll()
        assert tracker.spent() == 0.18
        cluster.answers, cluster.up = True, []
        tracker.poll()
        cluster.now += 3600
        assert tracker.spent() == 0.18
    assert [start["machines"][0]["seconds"] for start in store.spending()] == [3600.0]


def test_a_full_disk_does_not_end_the_sweep(cluster: Cluster, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError("no space left on device")

    monkeypatch.setattr(Store, "put_spending", full)
    cluster.up = [HEAD]
    with cluster.tracker(store) as tracker:
        cluster.now += 3600
        assert tracker.spent() == 0.18


def test_without_a_price_nothing_is_stored_printed_or_charged(cluster: Cluster, store: Store) -> None:
    cluster.up = [Machine(LOCAL_NODE_TYPE)]
    with cluster.tracker(store) as tracker:
        cluster.now += 3600
        assert tracker.spent() is None
        assert tracker.unpriced == [LOCAL_NODE_TYPE]
    assert store.spending() == cluster.printed == []
    assert store.plan() == a_plan()


def test_each_price_and_each_missing_price_is_printed_once(cluster: Cluster, store: Store) -> None:
    cluster.up = [HEAD, Machine("h100")]
    with cluster.tracker(store, parse_prices("l4=0.5")) as tracker:
        tracker.poll()
        assert tracker.unpriced == []
        cluster.up = [HEAD, L4, L4]
        tracker.poll()
    assert cluster.printed == [
        "cost: head at $0.18 an hour, by label",
        "cost: h100 has no price and is not counted: add --prices h100=PRICE",
        "cost: l4 at $0.50 an hour, by --prices",
    ]


def test_the_plan_records_the_price_of_each_node_type_that_was_given_or_up(cluster: Cluster, store: Store) -> None:
    cluster.up = [HEAD]
    with cluster.tracker(store, parse_prices("l4=0.5")) as tracker:
        head = {"usd_per_hour": 0.18, "from": "label"}
        assert (store.plan() or {})["prices"] == {"l4": {"usd_per_hour": 0.5, "from": "--prices"}, "head": head}
        cluster.up = [HEAD, A10G]
        tracker.poll()
    prices = (store.plan() or {})["prices"]
    assert prices["a10g"] == {"usd_per_hour": 0.72, "from": "label"}
    assert store.plan() == {**a_plan(), "prices": prices}


def test_prices_do_not_count_as_a_change_of_the_plan() -> None:
    from sweeps.engine.planning.plan_file import plan_differences

    assert plan_differences({**a_plan(), "prices": {"l4": {"usd_per_hour": 0.36, "from": "label"}}}, a_plan()) == []


def test_a_cost_budget_reserves_the_price_of_the_machines_that_are_up(cluster: Cluster, store: Store) -> None:
    cluster.up = [L4, L4]  # 0.72 an hour
    with cluster.tracker(store) as tracker:
        short_of, never = tracker.budget_check(1.0), tracker.budget_check(None)
        cluster.now += 3600  # 0.28 remain
        assert not short_of(0.0)
        assert not short_of(1399.0)
        assert short_of(1401.0)
        cluster.now += 1401
        assert short_of(0.0)
        assert not never(1e9)


# --- a sweep ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def heads_only(make_plan: Callable[..., Plan], tmp_path: Path, one_thread: None) -> Prepared:
    """20 linear probes, which a learning sampler proposes 16 at a time, and no finals."""
    from sweeps.engine.planning.prepare import prepare

    about = {"strategies": ("linear_probe",), "trials": 20, "finalists": 0, "epochs": 1, "advise": False}
    return prepare(make_plan(**about, edits={"augmentation": "none"}), tmp_path / "runs")


def test_a_search_ends_when_its_cost_budget_is_spent_and_resumes_with_a_larger_one(
    heads_only: Prepared, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeps.engine.planning.plan_file import describe_plan
    from sweeps.engine.sweep import Sweep
    from sweeps.engine.trials.run_options import RunOptions

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    store.put_plan(describe_plan(heads_only))
    screen = io.StringIO()

    def start(budget: float) -> None:
        watch = ProgressView(Console(file=screen, width=200), "colours")
        means = RunOptions(tracking_uri="", prices=Prices(every=3600.0), cost_budget=budget)
        # Each record takes a second, and each second costs a dollar.
        clock: Callable[[], float] = lambda: float(len(store.records()))  # noqa: E731
        with CostTracker(store, means.prices, lambda: [Machine(LOCAL_NODE_TYPE)], clock=clock) as meter:
            Sweep(heads_only, store, means, watch, meter).search()

    start(10.0)
    assert len(store.trials()) == len(store.records()) == 16
    start(12.0)
    assert len(store.trials()) == 16
    start(100.0)
    assert [record.status for record in store.records()] == 20 * ["finished"]
    assert [start["machines"][0]["seconds"] for start in store.spending()] == [16.0, 0.0, 4.0]
    ends = "The search ends here; a larger --cost-budget resumes from here"
    assert screen.getvalue().splitlines() == [
        "search: 20 runs",
        f"cost budget: $16.00 of $10 spent. {ends}",
        f"cost budget: $16.00 of $12 spent. {ends}",
        "search: 20 runs, 16 already done",
    ]


@pytest.fixture
def joining(
    prepared: Prepared, store: Store, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Placement, Budget]]:
    """Connects to a cluster of these machines, within a budget."""
    from sweeps.engine.resources.budget import Budget
    from sweeps.engine.trials import ray_connection, ray_tune
    from sweeps.engine.trials.placement import Placement
    from sweeps.engine.trials.trainable import Resources

    def join(machines: Sequence[Machine], usd: float | None = None) -> tuple[Placement, Budget]:
        monkeypatch.setenv("RAY_ADDRESS", "head:6379")
        monkeypatch.setattr(ray_connection, "connect_ray", lambda: None)
        monkeypatch.setattr(ray_tune, "max_concurrent_trials", lambda share: 4)
        monkeypatch.setattr(ray_tune, "summary_line", lambda: "cluster: four places")
        monkeypatch.setattr(ray_tune, "alive_machines", lambda: machines)
        budget = Budget(CostTracker(store), usd=usd)
        view = ProgressView(Console(file=io.StringIO()), "colours")
        placement = Placement(prepared, store, view, budget, Resources())
        placement.connect()
        return placement, budget

    return join


def test_a_cluster_on_which_nothing_has_a_price_is_refused_with_a_budget_and_taken_without(
    joining: Callable[..., tuple[Placement, Budget]],
) -> None:
    with pytest.raises(ValueError) as refused:
        joining([Machine("head"), Machine("l4"), Machine("l4")], usd=20.0)
    assert str(refused.value) == (
        "--cost-budget 20: the prices of this cluster's machines are unknown, so the cost cannot be computed. "
        "Add --prices head=PRICE,l4=PRICE in US dollars an hour, or "
        'labels: {xfer/usd-per-hour: "PRICE"} to each node type of the cluster file'
    )
    joining([Machine("head")])
    joining([HEAD, Machine("l4")], usd=20.0)


def test_what_the_finals_will_cost_is_kept_back(
    joining: Callable[..., tuple[Placement, Budget]], prepared: Prepared
) -> None:
    from sweeps.engine.selection import final_rounds

    placement, budget = joining([Machine("l4", 1.0)], usd=1.5)
    assert prepared.plan.finalists * prepared.plan.seeds == 9
    reserve = final_rounds(prepared.plan, placement.concurrent) * 600.0
    assert reserve == 1800.0  # 9 runs, of which the last goes alone after two rounds of 4
    assert not budget.exceeded(5300.0)
    assert budget.exceeded(5500.0)
    assert "and the finals will cost about $1.53" in budget.cost_message("The search ends", 5500.0)


# --- nodes as Ray sees them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "resources", "machine"),
    [
        ({"ray.io/node-group": "l4", "xfer/usd-per-hour": "0.36"}, {"GPU": 1.0}, L4),
        ({"ray.io/node-group": "head"}, {"node:__internal_head__": 1.0}, Machine("head")),
        ({"ray.io/accelerator-type": "A10G"}, {}, Machine("A10G")),
        ({}, {"node:__internal_head__": 1.0}, Machine("head")),
        ({"xfer/usd-per-hour": "cheap"}, {}, Machine("worker")),
    ],
)
def test_a_node_type_is_its_name_in_the_cluster_file_or_rays_description(
    labels: dict[str, str], resources: dict[str, float], machine: Machine
) -> None:
    from sweeps.engine.trials.ray_tune import node_machine

    assert node_machine(labels, resources) == machine
