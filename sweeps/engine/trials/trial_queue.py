"""Trial queue: which trial of the search is next."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.samplers.ask_tell import AskTellSampler
from sweeps.engine.storage.store import Trial
from sweeps.engine.trials.ledger import TrialLedger
from xfer.batched_probes.compatibility import can_batch


def search_trials(
    prepared: Prepared,
    sampler: AskTellSampler,
    ledger: TrialLedger,
    out_of_budget: Callable[[], bool] = lambda: False,
    probes_first: bool = False,
) -> Iterator[Trial]:
    """Yield the trials of the search: first those that an earlier start left unfinished, then new ones by number.

    The numbers come from `trial_numbers`. A number whose trial was started before is skipped, so a trial whose
    config.json was damaged is proposed again under its own number, and no other one is proposed twice.

    Args:
        prepared: the plan, with the space that is searched.
        sampler: proposes configurations.
        ledger: knows the trials of earlier starts; each new trial is added to it before it is yielded.
        out_of_budget: checked before each proposal. Probes are trained without Ray Tune asking for another trial.
        probes_first: whether known-good linear probes come before everything else.
    """
    for trial in ledger.unfinished("search"):
        sampler.enqueue(trial.name, trial.params)
        yield trial
    for number in trial_numbers(prepared, sampler, probes_first):
        name = f"{number:04d}"
        if name in ledger.trials:
            continue
        if out_of_budget():
            return
        params, config = sampler.ask(name, number)
        trial = Trial(name, "search", params, prepared.recipe(config).as_dict())
        ledger.start(trial)
        yield trial


def trial_numbers(prepared: Prepared, sampler: AskTellSampler, probes_first: bool) -> list[int]:
    """Return the numbers of the search's trials in the order in which they are started.

    Args:
        prepared: the plan, with the space that is searched.
        sampler: knows the configurations that are fixed in advance.
        probes_first: whether known-good linear probes come first. Next to fine-tuned trials they cost almost nothing,
            and they provide a baseline within the first minute.
    """
    numbers = range(prepared.plan.trials)
    if not probes_first:
        return list(numbers)
    probes = [
        number
        for number in numbers[: sampler.known_good]
        if (params := sampler.listed(number)) is not None
        and can_batch(prepared.recipe(prepared.space.configured(params)))
    ]
    return [*probes, *(number for number in numbers if number not in probes)]
