"""What machines cost: whose price counts, what adds up, what is written down, and when a budget ends a sweep."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from sweeps.engine.console.progress import ProgressView
from sweeps.engine.resources.cost import (
    LOCAL_NODE_TYPE,
    UNKNOWN_PRICES,
    CostLedger,
    CostTracker,
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
    """Machines that come and go, a clock that is set by hand, and what was said of them."""

    def __init__(self) -> None:
        self.there: list[Machine] = []
        self.now = 1_000.0
        self.said: list[str] = []
        self.answers = True

    def machines(self) -> Sequence[Machine]:
        if not self.answers:
            raise ConnectionError("the head is gone")
        return list(self.there)

    def meter(self, store: Store, prices: Prices = UNKNOWN_PRICES) -> CostTracker:
        return CostTracker(store, prices, self.machines, self.said.append, clock=lambda: self.now)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(tmp_path / "colours")
    found.put_plan(a_plan())
    return found


# --- prices -----------------------------------------------------------------------------------------------------------


def test_what_a_person_says_counts_before_the_label_and_one_price_may_be_for_all() -> None:
    by_type, every = parse_prices("l4=0.5"), parse_prices("0.40")
    assert [by_type.of(machine) for machine in (L4, HEAD, Machine("x"))] == [
        Price(0.5, "--prices"),
        Price(0.18, "label"),
        None,
    ]
    assert [every.of(machine) for machine in (L4, Machine(LOCAL_NODE_TYPE))] == 2 * [Price(0.4, "--prices")]


@pytest.mark.parametrize("text", ["l4", "=1", "l4=", "l4=-1", "l4=nan", "l4=inf", "l4=20000", "l4=1,l4=2", "1,2"])
def test_what_is_no_price_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"--prices {text}"):
        parse_prices(text)


def test_a_cluster_may_have_prices_that_nobody_knows_yet_and_this_machine_has_none_of_itself() -> None:
    check_cost_budget(parse_prices("l4=0.35"), 20.0, joins=True)
    check_cost_budget(UNKNOWN_PRICES, 20.0, joins=True)
    check_cost_budget(parse_prices("0.40"), 20.0, joins=False)
    check_cost_budget(UNKNOWN_PRICES, None, joins=False)
    with pytest.raises(ValueError, match="nobody has said what this machine costs"):
        check_cost_budget(UNKNOWN_PRICES, 20.0, joins=False)
    with pytest.raises(ValueError, match="names l4, node types of a cluster"):
        check_cost_budget(parse_prices("l4=0.35"), None, joins=False)


# --- adding up --------------------------------------------------------------------------------------------------------


def test_a_machine_is_charged_from_the_look_that_first_saw_it_to_the_one_that_did_not() -> None:
    spending = CostLedger()
    spending.look([HEAD], 100.0)
    spending.look([HEAD, L4, L4], 110.0)
    spending.look([HEAD, L4], 120.0)
    spending.look([HEAD], 150.0)
    spending.advance_to(200.0)
    seconds = {each["node_type"]: each["seconds"] for each in spending.described()}
    assert seconds == {"head": 100.0, "l4": 10.0 * 2 + 30.0}


def test_the_rate_is_that_of_the_machines_that_are_there() -> None:
    spending = CostLedger(parse_prices("l4=1.5"))
    spending.look([HEAD, L4, L4, Machine("nameless")], 0.0)
    assert spending.usd_per_hour == pytest.approx(0.18 + 2 * 1.5)
    spending.look([HEAD], 5.0)
    assert spending.usd_per_hour == 0.18


# --- the meter --------------------------------------------------------------------------------------------------------


def test_spending_is_written_down_about_once_a_minute_and_at_the_end(cluster: Cluster, store: Store) -> None:
    cluster.there = [L4]
    with cluster.meter(store) as meter:
        assert [start["machines"][0]["seconds"] for start in store.spending()] == [0.0]
        cluster.now += 59
        meter.look()
        assert [start["machines"][0]["seconds"] for start in store.spending()] == [0.0]
        cluster.now += 1
        meter.look()
        assert [start["machines"][0]["seconds"] for start in store.spending()] == [60.0]
        cluster.now += 40
    assert store.spending() == [
        {"machines": [{"node_type": "l4", "usd_per_hour": 0.36, "from": "label", "seconds": 100.0}]}
    ]


def test_starts_add_up_and_each_keeps_the_price_that_was_paid(cluster: Cluster, store: Store) -> None:
    cluster.there = [L4]
    with cluster.meter(store) as meter:
        cluster.now += 3600
        assert meter.spent() == 0.36
    with cluster.meter(store, parse_prices("l4=0.5")) as meter:
        assert meter.spent() == 0.36
        cluster.now += 7200
        assert meter.spent() == pytest.approx(1.36)
    assert [start["machines"][0]["usd_per_hour"] for start in store.spending()] == [0.36, 0.5]


def test_what_a_killed_driver_had_written_counts_for_the_next_start(cluster: Cluster, store: Store) -> None:
    cluster.there = [L4]
    killed = cluster.meter(store)
    killed.look()
    cluster.now += 3600
    killed.look()
    cluster.now += 30  # and never a word of these
    assert cluster.meter(store).spent() == 0.36


def test_while_a_cluster_does_not_answer_its_last_machines_are_charged_and_the_sweep_goes_on(
    cluster: Cluster, store: Store
) -> None:
    cluster.there = [HEAD]
    with cluster.meter(store) as meter:
        cluster.answers = False
        cluster.now += 3600
        meter.look()
        assert meter.spent() == 0.18
        cluster.answers, cluster.there = True, []
        meter.look()
        cluster.now += 3600
        assert meter.spent() == 0.18
    assert [start["machines"][0]["seconds"] for start in store.spending()] == [3600.0]


def test_a_disk_that_is_full_does_not_end_the_sweep(
    cluster: Cluster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError("no space left on device")

    monkeypatch.setattr(Store, "put_spending", full)
    cluster.there = [HEAD]
    with cluster.meter(store) as meter:
        cluster.now += 3600
        assert meter.spent() == 0.18


def test_without_a_price_nothing_is_written_said_or_spent(cluster: Cluster, store: Store) -> None:
    cluster.there = [Machine(LOCAL_NODE_TYPE)]
    with cluster.meter(store) as meter:
        cluster.now += 3600
        assert meter.spent() is None
        assert meter.unpriced == [LOCAL_NODE_TYPE]
    assert store.spending() == cluster.said == []
    assert store.plan() == a_plan()


def test_what_a_machine_costs_is_told_once_and_of_which_nobody_knows_it(cluster: Cluster, store: Store) -> None:
    cluster.there = [HEAD, Machine("h100")]
    with cluster.meter(store, parse_prices("l4=0.5")) as meter:
        meter.look()
        assert meter.unpriced == []
        cluster.there = [HEAD, L4, L4]
        meter.look()
    assert cluster.said == [
        "cost: head at $0.18 an hour, by label",
        "cost: no price is known for h100, which is not counted: --prices h100=PRICE",
        "cost: l4 at $0.50 an hour, by --prices",
    ]


def test_the_plan_knows_the_price_of_each_node_type_once_it_was_said_or_seen(cluster: Cluster, store: Store) -> None:
    cluster.there = [HEAD]
    with cluster.meter(store, parse_prices("l4=0.5")) as meter:
        head = {"usd_per_hour": 0.18, "from": "label"}
        assert (store.plan() or {})["prices"] == {"l4": {"usd_per_hour": 0.5, "from": "--prices"}, "head": head}
        cluster.there = [HEAD, A10G]
        meter.look()
    prices = (store.plan() or {})["prices"]
    assert prices["a10g"] == {"usd_per_hour": 0.72, "from": "label"}
    assert store.plan() == {**a_plan(), "prices": prices}


def test_prices_are_no_change_of_the_plan() -> None:
    from sweeps.engine.planning.plan_file import plan_differences

    assert plan_differences({**a_plan(), "prices": {"l4": {"usd_per_hour": 0.36, "from": "label"}}}, a_plan()) == []


def test_a_budget_is_short_of_what_the_machines_that_are_there_would_cost_until_the_end(
    cluster: Cluster, store: Store
) -> None:
    cluster.there = [L4, L4]  # 0.72 an hour
    with cluster.meter(store) as meter:
        short_of, never = meter.budget_check(1.0), meter.budget_check(None)
        cluster.now += 3600  # 0.28 are left
        assert not short_of(0.0)
        assert not short_of(1399.0)
        assert short_of(1401.0)
        cluster.now += 1401
        assert short_of(0.0)
        assert not never(1e9)


# --- a sweep ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def heads_only(make_plan: Callable[..., Plan], tmp_path: Path, one_thread: None) -> Prepared:
    """20 heads, which a sampler that learns proposes 16 at a time, and no finals."""
    from sweeps.engine.planning.prepare import prepare

    about = {"strategies": ("linear_probe",), "trials": 20, "finalists": 0, "epochs": 1, "advise": False}
    return prepare(make_plan(**about, edits={"augmentation": "none"}), tmp_path / "runs")


def test_a_sweep_ends_when_its_cost_budget_is_spent_and_goes_on_with_a_larger_one(
    heads_only: Prepared, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeps.engine.planning.plan_file import describe_plan
    from sweeps.engine.run_options import RunOptions
    from sweeps.engine.sweep import Sweep

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
    ends = "The search ends here; a larger --cost-budget goes on from here"
    assert screen.getvalue().splitlines() == [
        "search: 20 runs",
        f"cost budget: $16.00 of $10 spent. {ends}",
        f"cost budget: $16.00 of $12 spent. {ends}",
        "search: 20 runs, 16 of them done before",
    ]


@pytest.fixture
def joining(
    prepared: Prepared, store: Store, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Placement, Budget]]:
    """Connects to a cluster of these machines, within a budget."""
    from sweeps.engine.resources.budget import Budget
    from sweeps.engine.trials import ray_tune
    from sweeps.engine.trials.placement import Placement
    from sweeps.engine.trials.trainable import Resources

    def join(machines: Sequence[Machine], usd: float | None = None) -> tuple[Placement, Budget]:
        monkeypatch.setenv("RAY_ADDRESS", "head:6379")
        monkeypatch.setattr(ray_tune, "connect_ray", lambda: None)
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
        "--cost-budget 20: nobody has said what the machines of this cluster cost, so there is no telling when that is "
        "spent. Give --prices head=PRICE,l4=PRICE in US dollars an hour, or write "
        'labels: {xfer/usd-per-hour: "PRICE"} under each node type of the cluster file'
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


# --- Ray's word for it ------------------------------------------------------------------------------------------------


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
def test_a_node_type_is_its_name_in_the_cluster_file_or_what_it_is_to_ray(
    labels: dict[str, str], resources: dict[str, float], machine: Machine
) -> None:
    from sweeps.engine.trials.ray_tune import node_machine

    assert node_machine(labels, resources) == machine


@pytest.mark.slow
def test_what_ray_up_tells_a_node_of_its_type_and_labels_is_what_we_read(tmp_path: Path) -> None:
    labels = {"xfer/usd-per-hour": "0.36"}
    told = {"RAY_NODE_TYPE_NAME": "l4", "RAY_OVERRIDE_LABELS": json.dumps(labels, separators=(",", ":"))}
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    say = "from sweeps.engine.trials import ray_tune as r; r.connect_ray(); print(r.alive_machines())"
    shown = subprocess.run(
        [sys.executable, "-c", say],
        cwd=Path(__file__).parents[3],
        env={**ours, **told},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert shown.stdout.splitlines()[-1] == "[Machine(node_type='l4', labelled=0.36)]"
