"""Write a report: report.md, report.html, ranking.csv, trials.parquet, and the figures and photos of report.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from sweeps.reporting import screening, secondary_metrics, summary, tables, verdict, zero_effort
from sweeps.reporting.calibration import calibration_sections
from sweeps.reporting.class_accuracy import CLASS_COLUMNS_CAPTION
from sweeps.reporting.confusion import confusion_sections
from sweeps.reporting.coverage import coverage_sections
from sweeps.reporting.data_curve import data_curve_sections
from sweeps.reporting.figures import report_figures
from sweeps.reporting.first_screen import first_screen
from sweeps.reporting.formatting import (
    escape_control_characters,
    escape_markdown,
    format_duration,
    format_interval,
    format_percent,
    name_sets,
    pluralize,
)
from sweeps.reporting.importance import importance_sections
from sweeps.reporting.look_at_data import look_at_data
from sweeps.reporting.plot_style import PAGE_COLOURS, inline_svg
from sweeps.reporting.ranking import ranked_finalists, ranking_csv, ranking_frame, ranking_parquet
from sweeps.reporting.results import Results
from sweeps.reporting.search_history import history_sections
from sweeps.reporting.sections import Section
from sweeps.reporting.trial_map import trial_map_sections
from xfer.storage.atomic import atomic_write
from xfer.storage.redaction import redact

_TEMPLATES = Path(__file__).parent / "templates"
_TOP_ROWS = 10  # of the ranking in report.md; report.html and ranking.csv have all rows


def render(results: Results, folder: Path) -> Path:
    """Write the report into `folder`, replacing an older one. Every file is replaced atomically.

    Returns:
        The path of report.html.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    context = _context(results)
    sections = [*context["data_sections"], *context["sections"]]
    for figure in [*context["figures"], *(section.figure for section in sections if section.figure)]:
        write_published(folder / "figures" / f"{figure.name}.svg", figure.svg)
    for photo in (photo for section in sections for row in section.photos for photo in row.photos):
        (folder / "photos").mkdir(exist_ok=True)
        atomic_write(folder / "photos" / f"{photo.name}.jpg", photo.jpeg)
    frame = ranking_frame(results)
    write_published(folder / "ranking.csv", ranking_csv(frame))
    atomic_write(folder / "trials.parquet", ranking_parquet(frame))
    write_published(folder / "report.md", markdown_environment().get_template("report.md.j2").render(context))
    write_published(folder / "report.html", html_environment().get_template("report.html.j2").render(context))
    return folder / "report.html"


def write_published(file: Path, text: str) -> None:
    """Write a text of a report, without passwords and tokens: reports are published."""
    atomic_write(file, redact(text).encode())


def _context(results: Results) -> dict[str, Any]:
    """Variables of the two templates, which have the same content."""
    return {
        "plan": results.plan,
        "images": summary.image_counts(results),
        "split": name_sets(results.plan["data"]["split"]),
        "notes": [name_sets(note) for note in results.plan["data"]["notes"]],
        "length": summary.trial_length(results.plan),
        "headline": summary.headline(results),
        "screen": first_screen(results),
        "gain_over_control": verdict.gain_over_control(results),
        "optimism": verdict.optimism(results),
        "zero_effort_comparison": zero_effort.zero_effort_comparison(results),
        "comparison": summary.strategy_comparison(results),
        "front": summary.pareto_sentence(results),
        "cost": summary.cost_sentence(results),
        "caveats": summary.caveats(results),
        "accuracy_by_class": summary.accuracy_by_class(results),
        "class_columns_caption": CLASS_COLUMNS_CAPTION,
        "winning_recipe": summary.winning_recipe(results),
        "how_to_read": summary.how_to_read(results),
        "ranking": tables.ranking_table(results),
        "top_rows": _TOP_ROWS,
        "ranked_by": summary.ranked_by(results),
        "finalists": len(ranked_finalists(results)),
        "search": tables.search_table(results),
        "common_settings": tables.common_settings(results),
        "strategies": tables.strategies_table(results),
        "failures": tables.failures_table(results),
        "objectives": [objective.label for objective in results.objectives],
        "secondary_metrics": secondary_metrics.secondary_metrics_table(results),
        "secondary_metrics_caption": secondary_metrics.secondary_metrics_caption(results),
        "most_confused": secondary_metrics.most_confused(results),
        "zero_effort": zero_effort.zero_effort_table(results),
        "zero_effort_caption": zero_effort.ZERO_EFFORT_CAPTION,
        "screening": screening.screening_table(results),
        "screening_caption": screening.screening_caption(results),
        "transfer": secondary_metrics.compare_with_scratch(results),
        "figures": report_figures(results),
        "data_sections": look_at_data(results),
        "sections": evidence_sections(results),
        "runs": pluralize(len(results.records), "run"),
        "run_time": format_duration(results.seconds),
    }


def evidence_sections(results: Results) -> list[Section]:
    """Return the sections of evidence in report order."""
    return [
        *data_curve_sections(results),
        *confusion_sections(results),
        *calibration_sections(results),
        *history_sections(results),
        *trial_map_sections(results),
        *coverage_sections(results),
        *importance_sections(results),
    ]


def html_environment() -> Environment:
    """Return templates that escape every value for HTML and make invisible characters visible."""
    environment = _environment(
        autoescape=True, finalize=lambda value: value if isinstance(value, Markup) else escape_control_characters(value)
    )
    environment.filters["breakable"] = lambda name: escape(escape_control_characters(name)).replace(
        "_", Markup("_<wbr>")
    )
    # matplotlib has already escaped the names in the SVG.
    environment.filters["inline"] = lambda svg: Markup(inline_svg(svg))
    environment.globals["colours"] = PAGE_COLOURS
    return environment


def markdown_environment() -> Environment:
    """Return templates that escape every value for Markdown and make invisible characters visible."""
    environment = _environment(
        autoescape=False, finalize=lambda value: value if isinstance(value, Markup) else escape_markdown(value)
    )
    # Only for indented code blocks, which show every character literally and end with the line.
    environment.filters["verbatim"] = lambda text: Markup(escape_control_characters(text))
    return environment


def _environment(**settings: Any) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **settings,
    )
    environment.filters["percent"] = format_percent
    environment.filters["interval"] = lambda estimate: format_interval(estimate.low, estimate.high)
    return environment
