"""python -m xfer: everything that can be chosen is shown, and every flag explained."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest

from sweeps.engine.search_space.space import LEARNING_RATE_RANGES, PARAMETER_RANGES
from tests.xfer.cli_runner import make_command_runner
from xfer import __main__ as module
from xfer.choices import default_parameters
from xfer.commands import catalog
from xfer.commands.catalog import EXTRA_TABLES, LINE_WIDTH
from xfer.methods.strategies import STRATEGIES
from xfer.recipe import CHOICE_TABLES

ALL = {**CHOICE_TABLES, **EXTRA_TABLES}
ENTRIES = [(kind, name) for kind, table in ALL.items() for name in table]


@pytest.fixture
def xfer(capsys):
    return make_command_runner(capsys)


def tables_in(text):
    """The catalog as it was printed: for each table each entry's lines, that of its name first."""
    found, kind, name = {}, "", ""
    for line in text.splitlines():
        if re.fullmatch(r"\w+", line):
            kind = line
            found[kind] = {}
        elif re.match(r"  \w", line):
            name = line.split()[0]
            found[kind][name] = [line]
        elif line.startswith("      "):
            found[kind][name].append(line.strip())
    return found


def test_every_table_and_every_entry_is_listed_in_order_with_its_first_line(xfer):
    ended = xfer("catalog")
    assert (ended.status, ended.err) == (0, "")
    found = tables_in(ended.out)
    assert {kind: list(table) for kind, table in found.items()} == {kind: list(table) for kind, table in ALL.items()}
    for kind, name in ENTRIES:
        said = " ".join(found[kind][name][1:])
        assert said.endswith("."), (kind, name)
        if kind != "objective":
            assert " ".join(ALL[kind][name].__doc__.split()).startswith(said)


def test_every_parameter_is_listed_with_its_default_and_its_range(xfer):
    found = tables_in(xfer("catalog").out)
    for kind, table in CHOICE_TABLES.items():
        for name, entry in table.items():
            first = found[kind][name][0]
            for parameter, usual in default_parameters(entry).items():
                domain = str(PARAMETER_RANGES.get(f"{name}.{parameter}") or PARAMETER_RANGES[parameter])
                said = f"{usual:g}" if isinstance(usual, float) else str(usual)
                assert f"{parameter}={said}" + (f" ({domain})" if domain != said else "") in first
    for name, rate in LEARNING_RATE_RANGES.items():
        assert found["optimizer"][name][0].endswith(f"learning_rate {rate}")


def test_the_catalog_fits_a_terminal_and_numbers_are_short(xfer):
    out = xfer("catalog").out
    assert max(map(len, out.splitlines())) <= LINE_WIDTH
    assert "drop_every=0.666667 (0.3..0.7)" in out
    assert not re.search(r"\d\.\d{7}", out)


@pytest.mark.parametrize("kind", ALL)
def test_a_table_is_listed_alone(xfer, kind):
    found = tables_in(xfer("catalog", kind).out)
    assert next(iter(found)) == kind
    assert list(found[kind]) == list(ALL[kind])
    assert set(found) == {kind, *(other for other, name in ENTRIES if name == kind)}


@pytest.mark.parametrize("name", dict.fromkeys(name for _, name in ENTRIES if name not in ALL))
def test_an_entry_shows_its_whole_card_in_every_table_that_has_it(xfer, name):
    ended = xfer("catalog", name)
    assert ended.status == 0
    kinds = [kind for kind, entry in ENTRIES if entry == name]
    assert {kind: list(table) for kind, table in tables_in(ended.out).items()} == {kind: [name] for kind in kinds}
    for kind in kinds:
        if kind != "objective":
            assert " ".join(ALL[kind][name].__doc__.split()) in " ".join(ended.out.split())


def test_what_is_not_there_gets_the_nearest_and_not_the_whole_list(xfer):
    ended = xfer("catalog", "lorra")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == (
        "error: unknown table or entry 'lorra': did you mean lora? `python -m xfer catalog` lists them all\n"
    )
    assert "unknown table or entry 'zzz'. `python" in xfer("catalog", "zzz").err


def test_without_sweeps_the_catalog_has_no_ranges_and_says_where_they_are(xfer, monkeypatch):
    assert xfer("catalog", "lora").out.endswith("\n\nparameter=default (what a sweep tries)\n")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    ended = xfer("catalog")
    assert ended.status == 0
    assert ended.out.endswith("\n\nparameter=default; the ranges worth trying come with sweeps\n")
    found = tables_in(ended.out)
    assert found["strategy"]["lora"][0] == "  lora   rank=8"
    assert found["optimizer"]["adam"][0] == "  adam"
    assert [*found["strategy"]] == [*STRATEGIES]


# The command line as a whole


@pytest.mark.parametrize("name", module.COMMANDS)
def test_every_command_explains_its_flags(xfer, name):
    ended = xfer(name, "--help")
    assert ended.status == 0
    assert f"usage: python -m xfer {name}" in ended.out
    said = (module.COMMANDS[name].__doc__ or "").partition(": ")[2].strip()
    assert said in " ".join(ended.out.split())
    assert said in " ".join(xfer("--help").out.split())


def test_train_has_a_flag_for_every_table(xfer):
    out = xfer("train", "--help").out
    for kind in CHOICE_TABLES:
        assert f"--{kind.replace('_', '-')} NAME" in out
    assert "default: clip" in out


def test_what_argparse_refuses_is_wrong_input_too(xfer):
    assert xfer().status == 2
    assert xfer("trane").status == 2
    assert xfer("train").status == 2  # which images?
    assert xfer("train", "--data", "x", "--epochs", "many").status == 2


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (PermissionError(13, "Permission denied", "runs/packs"), 2, "error: Permission denied: runs/packs\n"),
        (OSError("disk"), 2, "error: disk: while reading or writing\n"),
        (ValueError("no"), 2, "error: no\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_whatever_ends_a_command_ends_it_in_a_line(xfer, monkeypatch, error, status, said):
    def run(asked):
        raise error

    monkeypatch.setattr(catalog, "run", run)
    ended = xfer("catalog")
    assert (ended.status, ended.err) == (status, said)


def test_a_reader_who_has_read_enough_ends_it_without_a_word():
    process = subprocess.Popen(
        [sys.executable, "-m", "xfer", "catalog"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()  # long before anything is written
    assert (process.stderr.read(), process.wait()) == ("", 0)
    process.stderr.close()
