"""Load the results of a sweep from its store and render its report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sweeps.engine.storage.store import Store
from sweeps.reporting.results import Importances, Results
from xfer.data.pack import load_pack
from xfer.storage import local_cache, object_store


def load_results(store: Store) -> Results:
    """Load everything that a sweep has stored so far.

    Raises:
        ValueError: the store's folder holds no sweep.
    """
    plan = store.plan()
    if plan is None:
        raise ValueError(f"there is no sweep in {store.folder}")
    records = store.records()
    ended = {record.trial for record in records}
    unfinished = [trial.name for trial in store.trials() if trial.name not in ended]
    screenings = store.decisions("screening")
    screening = screenings[-1] if screenings else None
    openings, zero_effort = store.decisions("openings"), store.decisions("zero_effort")
    results = Results(plan, records, openings, unfinished, screening, store.spending(), zero_effort)
    return replace(results, data_curve=next(iter(store.decisions("data_curve")), None))


def load_evidence(store: Store) -> Results:
    """Load what a report shows: results, predictions of the first finalist, data for photos, importance of choices.

    Missing or damaged predictions and data are left out, because a report must not depend on them.

    Raises:
        ValueError: the store's folder holds no sweep.
    """
    from sweeps.reporting.ranking import ranked_finalists  # takes half a second: pandas

    results = load_results(store)
    results = replace(results, importances=_importances(store, results))
    best = next(iter(ranked_finalists(results)), None)
    names = [record.trial for record in best.finals if record.test] if best else []
    runs = {name: run for name in names if (run := store.held_out(name)) is not None}
    # Never downloaded: a pack may be large, and the machine that has run the sweep has it.
    folder = local_cache.local_path(store.folder.parent / "packs" / results.plan["data"]["pack"][:16])
    try:
        return replace(results, held_out=runs, pack=load_pack(folder))
    except FileNotFoundError:
        why = "the prepared data of this sweep are not on this machine"
    except (OSError, ValueError) as error:
        why = f"the prepared data of this sweep cannot be read ({error})"
    return replace(results, held_out=runs, why_no_pack=why)


def _importances(store: Store, results: Results) -> Importances | None:
    """Return the importance of every choice in the deciding objective, from the finished trials of the search."""
    from sweeps.reporting.importance import MIN_TRIALS

    finished = {
        trial.name: trial.search_scores[0]
        for trial in results.trials
        if trial.status == "finished" and trial.search_scores[0] is not None
    }
    if len(finished) < MIN_TRIALS:
        return None
    from sweeps.engine.samplers.importance import choice_importances  # takes a second: Optuna

    trials = [trial for trial in store.trials() if trial.name in finished]
    scores = [finished[trial.name] for trial in trials]
    return choice_importances([trial.params for trial in trials], scores, results.plan["space"])


def render_report(store: Store, reports: Path) -> Path:
    """Render a sweep's report to `reports`/<name>/.

    If the sweep is in an object store, the report is also uploaded there, because this machine may go away.

    Returns:
        The path of report.html.

    Raises:
        ValueError: the store's folder holds no sweep.
    """
    from sweeps.reporting.render import render  # takes a second: matplotlib

    page = render(load_evidence(store), object_store.as_path(reports) / store.name)
    if object_store.is_remote(store.folder):
        for file in filter(Path.is_file, page.parent.rglob("*")):
            local_cache.upload_if_exists(file, store.folder / "report" / str(file.relative_to(page.parent)))
    return page
