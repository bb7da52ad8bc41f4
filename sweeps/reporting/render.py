"""Writes a report: report.md, report.html, ranking.csv, and the figures that report.md shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sweeps.reporting import screening, secondary_metrics, summary, tables
from sweeps.reporting.figures import report_figures
from sweeps.reporting.formatting import escape_control_characters, escape_markdown, format_duration, pluralize
from sweeps.reporting.plot_style import inline_svg
from sweeps.reporting.ranking import ranking_csv, ranking_frame
from sweeps.reporting.results import Results
from xfer.storage.atomic import atomic_write

_TEMPLATES = Path(__file__).parent / "templates"
_TOP = 10  # rows of the ranking in report.md; report.html and ranking.csv have all of them


def render(results: Results, folder: Path) -> Path:
    """Write the report into `folder`, made if need be, over an older one; returns the path of report.html.

    Every file is written under another name and renamed, so that none is ever half there.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    context = _context(results)
    for drawing in context["drawings"]:
        atomic_write(folder / "figures" / f"{drawing.name}.svg", drawing.svg.encode())
    atomic_write(folder / "ranking.csv", ranking_csv(ranking_frame(results)).encode())
    atomic_write(folder / "report.md", _markdown_pages().get_template("report.md.j2").render(context).encode())
    atomic_write(folder / "report.html", _html_pages().get_template("report.html.j2").render(context).encode())
    return folder / "report.html"


def _context(results: Results) -> dict[str, Any]:
    """All that the two templates fill in; they say the same."""
    return {
        "plan": results.plan,
        "headline": summary.headline(results),
        "comparison": summary.strategy_comparison(results),
        "front": summary.pareto_sentence(results),
        "cost": summary.cost_sentence(results),
        "caveats": summary.caveats(results),
        "winning_recipe": summary.winning_recipe(results),
        "how_to_read": summary.how_to_read(results),
        "ranking": tables.ranking_table(results),
        "top": _TOP,
        "finalists": sum(trial.is_finalist for trial in results.trials),
        "common_settings": tables.common_settings(results),
        "strategies": tables.strategies_table(results),
        "failures": tables.failures_table(results),
        "objectives": [objective.label for objective in results.objectives],
        "beside_accuracy": secondary_metrics.secondary_metrics_table(results),
        "most_confused": secondary_metrics.most_confused(results),
        "beside_in_words": secondary_metrics.SECONDARY_METRICS_CAPTION,
        "screening": screening.screening_table(results),
        "screening_in_words": screening.SCREENING_CAPTION,
        "transfer": secondary_metrics.transfer_benefits_table(results),
        "transfer_in_words": secondary_metrics.TRANSFER_BENEFITS_CAPTION,
        "drawings": report_figures(results),
        "runs": pluralize(len(results.records), "run"),
        "time_spent": format_duration(results.seconds),
    }


def _html_pages() -> Environment:
    """Templates in which everything that is filled in is made visible and escaped."""
    pages = _pages(
        autoescape=True, finalize=lambda value: value if isinstance(value, Markup) else escape_control_characters(value)
    )
    # matplotlib escaped the names in it already.
    pages.filters["in_page"] = lambda svg: Markup(inline_svg(svg))
    return pages


def _markdown_pages() -> Environment:
    """Templates in which everything that is filled in is made visible and escaped for Markdown."""
    pages = _pages(
        autoescape=False, finalize=lambda value: value if isinstance(value, Markup) else escape_markdown(value)
    )
    # For indented code blocks only: they show every character, and end at the line's end.
    pages.filters["verbatim"] = lambda text: Markup(escape_control_characters(text))
    return pages


def _pages(**settings: Any) -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **settings,
    )
