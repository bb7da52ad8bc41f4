"""Format recipes and numbers as text, and escape untrusted names.

Class, file and experiment names come from outside. Every text therefore passes through `escape_control_characters`
before it reaches a page, a figure, a table cell or a terminal. Escaping for HTML and Markdown is applied on top.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from xfer.methods.descriptions import strategy_descriptions
from xfer.objectives import Objective, Unit

if TYPE_CHECKING:  # importing SciPy takes half a second, and --help imports this module
    from sweeps.reporting.statistics import Estimate


MISSING = "\N{EN DASH}"
"""Table cell for a value that was not measured."""

# Unicode categories: control, format (including bidirectional overrides), surrogate, unassigned, line and paragraph
# separators.
_INVISIBLE_CATEGORIES = {"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # format characters that are part of ordinary words in Persian and Hindi


def escape_control_characters(text: object) -> str:
    r"""Replace invisible characters (ANSI escapes, newlines, bidirectional overrides) by their escape sequences.

    >>> print(escape_control_characters("ants\x1b[31m"))
    ants\x1b[31m
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _INVISIBLE_CATEGORIES and character not in _JOINERS
        else character
        for character in str(text)
    )


def truncate(text: str, length: int) -> str:
    """Cut the text to `length` characters; a longer text ends with an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"


def escape_markdown(text: object) -> str:
    r"""Escape the text so that Markdown shows it literally, anywhere in a line or in a table cell.

    >>> print(escape_markdown("freeze_then_unfreeze | *<b>*"))
    freeze_then_unfreeze &#124; \*&lt;b&gt;\*
    """
    entities = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
    plain = re.sub(r"[\\`*\[\]~$!]", r"\\\g<0>", escape_control_characters(text))
    # An underscore inside a word is not markup, and most of our names have one: leave it readable.
    plain = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", plain)
    plain = re.sub(r"[&<>|]", lambda match: entities[match.group()], plain)
    # These start a heading, a list or an underline at the beginning of a line.
    plain = re.sub(r"^( *)([-+=#])", r"\1\\\2", plain)
    return re.sub(r"^( *\d+)([.)])(?= |$)", r"\1\\\2", plain)


def class_name(classes: Sequence[str], index: int) -> str:
    """Return the name of a class, safe to print; its number if a record of another version has more classes.

    >>> class_name(["ants", "bees"], 1), class_name(["ants", "bees"], 2)
    ('bees', 'class 2')
    """
    return escape_control_characters(classes[index] if index < len(classes) else f"class {index}")


def format_choice(choice: Mapping[str, Any], omit: frozenset[str] = frozenset()) -> str:
    """Format a choice and its parameters as a function call.

    Args:
        choice: `name` and the parameters.
        omit: parameters to leave out.

    >>> format_choice({"name": "sgd", "momentum": 0.9})
    'sgd(momentum=0.9)'
    """
    parameters = {key: value for key, value in choice.items() if key != "name" and key not in omit}
    arguments = ", ".join(f"{key}={format_setting(value)}" for key, value in parameters.items())
    return escape_control_characters(f"{choice['name']}({arguments})" if arguments else choice["name"])


def describe_strategy(name: str) -> str:
    """Return what a strategy does, in a few words; empty for a strategy of another version.

    >>> describe_strategy("clip"), describe_strategy("my_own")
    ('full fine-tuning, gradients clipped', '')
    """
    return strategy_descriptions().get(name, "")


def explain_strategy(choice: Mapping[str, Any]) -> str:
    """Format a strategy with its parameters and, in brackets, what it does.

    >>> explain_strategy({"name": "clip"}), explain_strategy({"name": "my_own"})
    ('clip (full fine-tuning, gradients clipped)', 'my_own')
    """
    description = describe_strategy(str(choice["name"]))
    return format_choice(choice) + (f" ({description})" if description else "")


def name_sets(text: str) -> str:
    """Replace "part" by "set" in a sentence of plan.json: readers know test sets.

    The stored sentences keep the older word, because a sweep is resumed only if its plan is unchanged.

    >>> name_sets("the given val part is the test part; training, validation and test part are as given")
    'the given val part is the test set; training, validation and test set are as given'
    """
    return re.sub(r"\b(training|validation|test) part(s?)\b", r"\1 set\2", text)


DEFAULT_CHOICES: dict[str, object] = {
    "embedding_loss": {"name": "none"},
    "head": {"name": "linear"},
    "activation": {"name": "keep"},
    "batch_norm": {"name": "with_weights"},
    "colour": {"name": "rgb"},
    "body_rate": 1.0,
    "clip_value": None,
    "images_per_class": None,
    "views": None,
    "balance": {"name": "none"},
    "drop_path": 0.0,
}
"""Defaults for settings that a recipe may omit, as recipes written by older versions do (`xfer.recipe`)."""


def format_status(status: str, epochs: int | None = None) -> str:
    """Format a run's status for a reader.

    Args:
        status: `xfer.records.Status`.
        epochs: number of completed epochs, shown for a run that was stopped early.

    >>> format_status("finished", 6), format_status("pruned", 3), format_status("pruned")
    ('finished', 'stopped early at epoch 3', 'stopped early')
    """
    if status != "pruned":
        return status
    return "stopped early" if epochs is None else f"stopped early at epoch {epochs}"


def rare_settings(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Format the settings of a recipe that are listed in `DEFAULT_CHOICES`.

    >>> rare_settings({"head": {"name": "mlp", "width": 256}})["head"], rare_settings({})["clip_value"]
    ('mlp(width=256)', 'none')
    """
    values = {name: recipe.get(name, default) for name, default in DEFAULT_CHOICES.items()}
    return {
        name: format_choice(value) if isinstance(value, Mapping) else "none" if value is None else format_setting(value)
        for name, value in values.items()
    }


def describe_recipe(recipe: Mapping[str, Any], steps: int | None = None) -> str:
    """Describe a complete recipe in one line.

    Args:
        recipe: the recipe as plain data.
        steps: number of gradient steps of the run; None to leave it out.
    """
    backbone = format_choice({"name": recipe["backbone"], **recipe["backbone_args"]})
    mixing = format_choice(recipe["mixing"])
    augmentation = format_choice(recipe["augmentation"])
    clip_norm = recipe["clip_norm"]
    defaults = rare_settings({})
    changed = [
        f"{name.replace('_', ' ')} {value}" for name, value in rare_settings(recipe).items() if value != defaults[name]
    ]
    return ", ".join(
        [
            f"{format_choice(recipe['strategy'])} on {backbone} at {recipe['image_size']} px",
            f"{format_choice(recipe['optimizer'])} with learning rate {format_setting(recipe['learning_rate'])}"
            f" and weight decay {format_setting(recipe['weight_decay'])}",
            f"{format_choice(recipe['schedule'])} schedule",
            "no augmentation" if augmentation == "none" else f"{augmentation} augmentation",
            "no mixing" if mixing == "none" else f"{mixing} mixing",
            f"{format_choice(recipe['loss'])} loss",
            "no clipping" if clip_norm is None else f"gradients clipped at norm {format_setting(clip_norm)}",
            f"batch size {recipe['batch_size']}",
            pluralize(recipe["epochs"], "epoch") + (f" of {steps / recipe['epochs']:,.0f} steps" if steps else ""),
            *changed,
        ]
    )


def format_setting(value: object) -> str:
    """Format a setting: floats with three significant digits, everything else unchanged."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return escape_control_characters(value)


def format_percent(accuracy: float | None) -> str:
    """Format an accuracy in [0, 1] as a percentage with one decimal; `MISSING` for None or NaN."""
    return MISSING if accuracy is None or not math.isfinite(accuracy) else f"{100 * accuracy:.1f}%"


def format_objective(objective: Objective, value: float | None) -> str:
    """Format a value of the objective in the objective's unit; `MISSING` for None.

    >>> from xfer.objectives import OBJECTIVES
    >>> [format_objective(OBJECTIVES[name], 0.4567) for name in ("balanced_accuracy", "loss", "seconds")]
    ['45.7%', '0.457', '0.5 s']
    """
    formatters: dict[Unit, Callable[[float], str]] = {
        "share": format_percent,
        "nats": format_setting,
        "seconds": format_duration,
    }
    return MISSING if value is None else formatters[objective.unit](value)


def format_percentage_points(difference: float) -> str:
    """Format a difference of two accuracies in percentage points, with its sign.

    >>> format_percentage_points(0.1234), format_percentage_points(-0.02), format_percentage_points(0.0)
    ('+12.3', '-2.0', '0.0')
    """
    shown = f"{100 * difference:+.1f}"
    return shown[1:] if float(shown) == 0 else shown


def format_interval(low: float, high: float) -> str:
    """Format an interval within [0, 1] in percent, without percent signs.

    >>> format_interval(0.914, 1.0)
    '91.4 to 100.0'
    """
    return f"{100 * low:.1f} to {100 * high:.1f}"


def format_estimate(estimate: Estimate) -> str:
    """Format an estimate with its interval and sample size, for use in a sentence.

    >>> from sweeps.reporting.statistics import Estimate
    >>> format_estimate(Estimate(0.915, 0.86, 0.95, images=153, seeds=3))
    '91.5% (95% interval 86.0 to 95.0; 153 images, 3 seeds)'
    """
    interval = format_interval(estimate.low, estimate.high)
    return f"{format_percent(estimate.mean)} (95% interval {interval}; {format_sample_size(estimate)})"


def format_sample_size(estimate: Estimate) -> str:
    """Format the number of images and seeds behind an estimate.

    >>> from sweeps.reporting.statistics import Estimate
    >>> format_sample_size(Estimate(0.9, 0.8, 0.95, images=153, seeds=3))
    '153 images, 3 seeds'
    >>> format_sample_size(Estimate(0.9, 0.8, 0.95, images=147, seeds=3, images_per_seed=(60, 60)))
    '3 seeds with 60 images each, 147 different ones'
    """
    if estimate.images_per_seed is None:
        return f"{pluralize(estimate.images, 'image')}, {pluralize(estimate.seeds, 'seed')}"
    low, high = estimate.images_per_seed
    each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{pluralize(estimate.seeds, 'seed')} with {each} images each, {estimate.images:,} different ones"


def pluralize(count: int, noun: str) -> str:
    """Format a count with its noun in the singular or plural.

    >>> pluralize(1, "trial"), pluralize(2, "trial")
    ('1 trial', '2 trials')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_duration(seconds: float) -> str:
    """Format a duration with two or three significant digits.

    >>> format_duration(4.2), format_duration(75), format_duration(8000)
    ('4.2 s', '1 min 15 s', '2 h 13 min')
    """
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def format_dollars(amount: float) -> str:
    """Format US dollars: whole amounts without cents, other amounts with two to four decimals.

    >>> format_dollars(20.0), format_dollars(3.2), format_dollars(0.8048), format_dollars(1234.5)
    ('$20', '$3.20', '$0.8048', '$1,234.50')
    """
    whole, _, cents = f"{amount:,.4f}".partition(".")
    cents = cents.rstrip("0")
    return f"${whole}.{cents:0<2}" if cents else f"${whole}"


def format_cost_so_far(spent: float | None, budget: float | None) -> str:
    """Format the cost so far and the cost budget; "" if no price is known.

    >>> format_cost_so_far(3.2, 20.0), format_cost_so_far(3.204, None), format_cost_so_far(None, None)
    ('$3.20 of $20', '$3.20 so far', '')
    """
    if spent is None:
        return ""
    return f"${spent:,.2f} of {format_dollars(budget)}" if budget is not None else f"${spent:,.2f} so far"


def join_words(items: list[str]) -> str:
    """Join items as an English enumeration.

    >>> join_words(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))
