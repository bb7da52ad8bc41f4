"""Recipes and numbers in words, and untrusted names made harmless.

Class, file and experiment names come from whoever made the data set, so every text passes through `visible` on its
way to a page, a figure, a table cell or a terminal; escaping for HTML and Markdown comes on top of that.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from xfer.objectives import Objective, Unit

if TYPE_CHECKING:  # SciPy takes half a second, and these words are also what --help waits for
    from sweeps.reporting.statistics import Estimate


MISSING = "\N{EN DASH}"

# Control, format (bidirectional overrides among them), surrogate and unassigned characters, line and paragraph ends.
_INVISIBLE = {"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # of the format characters, these two belong to ordinary words in Persian and in Hindi


def visible(text: object) -> str:
    r"""The text with every character that acts instead of showing (ANSI escapes, newlines, overrides) spelled out.

    >>> print(visible("ants\x1b[31m"))
    ants\x1b[31m
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _INVISIBLE and character not in _JOINERS
        else character
        for character in str(text)
    )


def shortened(text: str, length: int) -> str:
    """The text, cut to `length` characters with an ellipsis where it is longer."""
    return text if len(text) <= length else text[: length - 1] + "…"


def markdown(text: object) -> str:
    r"""The text so that Markdown shows it as it is, anywhere in a line or in a table cell.

    >>> print(markdown("freeze_then_unfreeze | *<b>*"))
    freeze_then_unfreeze &#124; \*&lt;b&gt;\*
    """
    entities = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
    plain = re.sub(r"[\\`*\[\]~$!]", r"\\\g<0>", visible(text))
    # An underscore within a word is no markup, and most of our names have one: leave them readable.
    plain = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", plain)
    plain = re.sub(r"[&<>|]", lambda found: entities[found.group()], plain)
    # What would open a heading, a list or an underline at the start of a line.
    plain = re.sub(r"^( *)([-+=#])", r"\1\\\2", plain)
    return re.sub(r"^( *\d+)([.)])(?= |$)", r"\1\\\2", plain)


def describe(choice: Mapping[str, Any], leave_out: frozenset[str] = frozenset()) -> str:
    """A choice and its parameters, as one would call it.

    >>> describe({"name": "sgd", "momentum": 0.9})
    'sgd(momentum=0.9)'
    """
    parameters = {key: value for key, value in choice.items() if key != "name" and key not in leave_out}
    inside = ", ".join(f"{key}={number(value)}" for key, value in parameters.items())
    return visible(f"{choice['name']}({inside})" if inside else choice["name"])


USUAL: dict[str, object] = {
    "embedding_loss": {"name": "none"},
    "head": {"name": "linear"},
    "activation": {"name": "keep"},
    "batch_norm": {"name": "with_weights"},
    "colour": {"name": "rgb"},
    "body_rate": 1.0,
    "clip_value": None,
    "images_per_class": None,
    "views": None,
}
"""What a recipe means that does not say it, as those of older versions do not (`xfer.recipe`)."""


def rare_settings(recipe: Mapping[str, Any]) -> dict[str, str]:
    """What stands in a recipe under the names in `USUAL`, in words.

    >>> rare_settings({"head": {"name": "mlp", "width": 256}})["head"], rare_settings({})["clip_value"]
    ('mlp(width=256)', 'none')
    """
    values = {name: recipe.get(name, usual) for name, usual in USUAL.items()}
    return {
        name: describe(value) if isinstance(value, Mapping) else "none" if value is None else number(value)
        for name, value in values.items()
    }


def recipe_in_words(recipe: Mapping[str, Any]) -> str:
    """Everything a person would want to know of a recipe, in one line."""
    backbone = describe({"name": recipe["backbone"], **recipe["backbone_args"]})
    mixing = describe(recipe["mixing"])
    augmentation = describe(recipe["augmentation"])
    clip_norm = recipe["clip_norm"]
    usual = rare_settings({})
    rare = [
        f"{name.replace('_', ' ')} {value}" for name, value in rare_settings(recipe).items() if value != usual[name]
    ]
    return ", ".join(
        [
            f"{describe(recipe['strategy'])} on {backbone} at {recipe['image_size']} px",
            f"{describe(recipe['optimizer'])} with learning rate {number(recipe['learning_rate'])}"
            f" and weight decay {number(recipe['weight_decay'])}",
            f"{describe(recipe['schedule'])} schedule",
            "no augmentation" if augmentation == "none" else f"{augmentation} augmentation",
            "no mixing" if mixing == "none" else f"{mixing} mixing",
            f"{describe(recipe['loss'])} loss",
            "no clipping" if clip_norm is None else f"gradients clipped at norm {number(clip_norm)}",
            f"batches of {recipe['batch_size']}",
            f"{recipe['epochs']} epochs",
            *rare,
        ]
    )


def number(value: object) -> str:
    """A setting as a person writes it: three digits for a float, everything else as it is."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return visible(value)


def percent(accuracy: float | None) -> str:
    """An accuracy in [0, 1] as a percentage with one decimal."""
    return MISSING if accuracy is None or not math.isfinite(accuracy) else f"{100 * accuracy:.1f}%"


def measured(objective: Objective, value: float | None) -> str:
    """What was reached in an objective, as a person writes it.

    >>> from xfer.objectives import OBJECTIVES
    >>> [measured(OBJECTIVES[name], 0.4567) for name in ("balanced_accuracy", "loss", "seconds")]
    ['45.7%', '0.457', '0.5 s']
    """
    write: dict[Unit, Callable[[float], str]] = {"share": percent, "nats": number, "seconds": duration}
    return MISSING if value is None else write[objective.unit](value)


def points(difference: float) -> str:
    """A difference of two accuracies in percentage points, with its sign.

    >>> points(0.1234), points(-0.02), points(0.0)
    ('+12.3', '-2.0', '0.0')
    """
    shown = f"{100 * difference:+.1f}"
    return shown[1:] if float(shown) == 0 else shown


def percents(low: float, high: float) -> str:
    """An interval within [0, 1] in percent.

    >>> percents(0.914, 1.0)
    '91.4% to 100.0%'
    """
    return f"{percent(low)} to {percent(high)}"


def evidence(estimate: Estimate) -> str:
    """An estimate with its interval and what it rests on, for a sentence."""
    return f"{percent(estimate.mean)} ({percents(estimate.low, estimate.high)}; {basis(estimate)})"


def basis(estimate: Estimate) -> str:
    """What an estimate rests on.

    >>> from sweeps.reporting.statistics import Estimate
    >>> basis(Estimate(0.9, 0.8, 0.95, images=153, seeds=3))
    '153 images, 3 seeds'
    """
    return f"{counted(estimate.images, 'image')}, {counted(estimate.seeds, 'seed')}"


def counted(count: int, noun: str) -> str:
    """A count with its noun.

    >>> counted(1, "trial"), counted(2, "trial")
    ('1 trial', '2 trials')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """A time span to two or three digits.

    >>> duration(4.2), duration(75), duration(8000)
    ('4.2 s', '1 min 15 s', '2 h 13 min')
    """
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def dollars(amount: float) -> str:
    """An amount of money as one writes it: whole dollars without cents, a price an hour to its last digit.

    >>> dollars(20.0), dollars(3.2), dollars(0.8048), dollars(1234.5)
    ('$20', '$3.20', '$0.8048', '$1,234.50')
    """
    whole, _, cents = f"{amount:,.4f}".partition(".")
    cents = cents.rstrip("0")
    return f"${whole}.{cents:0<2}" if cents else f"${whole}"


def cost_so_far(spent: float | None, budget: float | None) -> str:
    """What has been spent, and of how much; nothing where no price is known.

    >>> cost_so_far(3.2, 20.0), cost_so_far(3.204, None), cost_so_far(None, None)
    ('$3.20 of $20', '$3.20 so far', '')
    """
    if spent is None:
        return ""
    return f"${spent:,.2f} of {dollars(budget)}" if budget is not None else f"${spent:,.2f} so far"


def listed(items: list[str]) -> str:
    """Items as one says them.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))
