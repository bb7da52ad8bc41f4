"""What each strategy does, in a few words, for readers who do not know its name.

The words are the first line of each strategy's docstring in strategies.py. They are read from its source, because
importing it takes torch, and neither `--help` nor a report needs that.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("strategies.py")


@cache
def strategy_descriptions() -> Mapping[str, str]:
    """Return the description of every strategy by its name, in lower case and without a full stop.

    >>> strategy_descriptions()["clip"]
    'full fine-tuning, gradients clipped'
    """
    functions = [
        node for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)
    ]
    return {
        function.name: _phrase(ast.get_docstring(function) or "")
        for function in functions
        if function.returns is not None and ast.unparse(function.returns) == "Strategy"
    }


def explain_strategy(name: str) -> str:
    """Return a strategy's name with its description in brackets; an unknown name alone.

    >>> explain_strategy("clip"), explain_strategy("my_own")
    ('clip (full fine-tuning, gradients clipped)', 'my_own')
    """
    description = strategy_descriptions().get(name)
    return f"{name} ({description})" if description else name


def _phrase(docstring: str) -> str:
    first = docstring.partition("\n")[0].removesuffix(".")
    return first[:1].lower() + first[1:]
