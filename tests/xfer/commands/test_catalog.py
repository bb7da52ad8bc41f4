"""python -m xfer catalog lists everything that can be chosen, and every command explains its flags."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.xfer.cli_runner import make_command_runner
from xfer import __main__ as module
from xfer.choices import default_parameters
from xfer.commands import catalog
from xfer.commands.catalog import EXTRA_TABLES, LINE_WIDTH
from xfer.hyperparameters import OPTIMIZERS, search_range
from xfer.recipe import CHOICE_TABLES

ALL = {**CHOICE_TABLES, **EXTRA_TABLES}
WITHOUT_DOCSTRING = ("objective", "backbone", "family")  # their entries are data, described by their fields
ENTRIES = [(kind, name) for kind, table in ALL.items() for name in table]


@pytest.fixture
def xfer(capsys):
    return make_command_runner(capsys)


def parse_catalog(text):
    """The printed catalog: the lines of each entry by table, starting with the line of its name."""
    tables, kind, name = {}, "", ""
    for line in text.splitlines():
        if re.fullmatch(r"\w+", line):
            kind = line
            tables[kind] = {}
        elif re.match(r"  \w", line):
            name = line.split()[0]
            tables[kind][name] = [line]
        elif line.startswith("      "):
            tables[kind][name].append(line.strip())
    return tables


def test_every_table_and_every_entry_is_listed_in_order_with_the_first_line_of_its_card(xfer):
    result = xfer("catalog")
    assert (result.status, result.err) == (0, "")
    tables = parse_catalog(result.out)
    assert {kind: list(table) for kind, table in tables.items()} == {kind: list(table) for kind, table in ALL.items()}
    for kind, name in ENTRIES:
        text = " ".join(tables[kind][name][1:])
        assert text.endswith("."), (kind, name)
        if kind not in WITHOUT_DOCSTRING:
            assert " ".join(ALL[kind][name].__doc__.split()).startswith(text)


def test_every_parameter_is_listed_with_its_default_and_its_range(xfer):
    tables = parse_catalog(xfer("catalog").out)
    for kind, table in CHOICE_TABLES.items():
        for name, entry in table.items():
            first = tables[kind][name][0]
            for parameter, default in default_parameters(entry).items():
                searched = str(search_range(name, parameter))
                text = f"{default:g}" if isinstance(default, float) else str(default)
                assert f"{parameter}={text}" + (f" ({searched})" if searched != text else "") in first
    for name, row in OPTIMIZERS.items():
        assert tables["optimizer"][name][0].endswith(f"learning_rate {row.learning_rates}")


def test_the_catalog_fits_a_terminal_and_numbers_are_short(xfer):
    out = xfer("catalog").out
    assert max(map(len, out.splitlines())) <= LINE_WIDTH
    assert "drop_every=0.666667 (0.3..0.7)" in out
    assert not re.search(r"\d\.\d{7}", out)


def test_the_catalog_explains_its_notation(xfer):
    assert xfer("catalog", "lora").out.endswith("\n\nparameter=default (what a sweep tries)\n")


@pytest.mark.parametrize("kind", ALL)
def test_a_table_can_be_listed_alone(xfer, kind):
    tables = parse_catalog(xfer("catalog", kind).out)
    assert next(iter(tables)) == kind
    assert list(tables[kind]) == list(ALL[kind])
    assert set(tables) == {kind, *(other for other, name in ENTRIES if name == kind)}


@pytest.mark.parametrize("name", dict.fromkeys(name for _, name in ENTRIES if name not in ALL))
def test_an_entry_shows_its_whole_card_in_every_table_that_has_it(xfer, name):
    result = xfer("catalog", name)
    assert result.status == 0
    kinds = [kind for kind, entry in ENTRIES if entry == name]
    assert {kind: list(table) for kind, table in parse_catalog(result.out).items()} == {kind: [name] for kind in kinds}
    for kind in kinds:
        if kind not in WITHOUT_DOCSTRING:
            assert " ".join(ALL[kind][name].__doc__.split()) in " ".join(result.out.split())


def test_an_alias_shows_the_card_of_its_entry(xfer):
    assert xfer("catalog", "full_finetune").out == xfer("catalog", "naive").out


def test_an_unknown_name_gets_the_closest_known_names_instead_of_the_whole_list(xfer):
    result = xfer("catalog", "lorra")
    assert (result.status, result.out) == (2, "")
    assert result.err == (
        "error: unknown table or entry 'lorra': did you mean lora? `python -m xfer catalog` lists them all\n"
    )
    assert "unknown table or entry 'zzz'. `python" in xfer("catalog", "zzz").err
    assert "did you mean full_finetune?" in xfer("catalog", "full_finetuning").err


# The command line as a whole


@pytest.mark.parametrize("name", module.COMMANDS)
def test_every_command_explains_its_flags(xfer, name):
    result = xfer(name, "--help")
    assert result.status == 0
    assert f"usage: python -m xfer {name}" in result.out
    summary = (module.COMMANDS[name].__doc__ or "").partition(": ")[2].strip()
    assert summary in " ".join(result.out.split())
    assert summary in " ".join(xfer("--help").out.split())


def test_train_has_a_flag_for_every_table(xfer):
    out = xfer("train", "--help").out
    for kind in CHOICE_TABLES:
        assert f"--{kind.replace('_', '-')} NAME" in out
    assert "default: clip" in out


def test_the_program_alone_explains_its_commands(xfer):
    result = xfer()
    assert (result.status, result.err) == (0, "")
    assert set(re.findall(r"^    (\w+) ", result.out, re.M)) == set(module.COMMANDS)
    assert set(re.findall(r"^  python -m xfer (\w+)", result.out, re.M)) == set(module.COMMANDS)


def test_a_command_line_that_argparse_rejects_has_status_2_too(xfer):
    assert xfer("trane").status == 2
    assert xfer("train").status == 2  # --data is missing
    assert xfer("train", "--data", "x", "--epochs", "many").status == 2


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (PermissionError(13, "Permission denied", "runs/packs"), 2, "error: Permission denied: runs/packs\n"),
        (OSError("disk"), 2, "error: disk: while reading or writing\n"),
        (ValueError("no"), 2, "error: no\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_error_ends_a_command_with_one_line(xfer, monkeypatch, error, status, message):
    def run(args):
        raise error

    monkeypatch.setattr(catalog, "run", run)
    result = xfer("catalog")
    assert (result.status, result.err) == (status, message)


def test_a_closed_pipe_ends_the_catalog_silently():
    process = subprocess.Popen(
        [sys.executable, "-m", "xfer", "catalog"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()  # long before anything is written
    assert (process.stderr.read(), process.wait()) == ("", 0)
    process.stderr.close()


def test_a_network_of_the_panel_is_described_by_its_figures_reason_source_and_license(xfer):
    out = xfer("catalog", "vit_small_patch16_dinov3.lvd1689m").out
    assert max(map(len, out.splitlines())) <= LINE_WIDTH
    out = " ".join(out.split())
    assert "In the small panel of --backbone auto: 21.6 million parameters, 9.40 GFLOPs at 224 px." in out
    assert "Source: Siméoni et al. 2025 (arXiv 2508.10104)." in out
    assert "The weights are under the DINOv3 license." in out
    assert "82.9% on ImageNet" in xfer("catalog", "convnext_nano.in12k_ft_in1k").out


def test_a_family_is_described_by_its_layers_ranges_reason_and_source(xfer):
    out = " ".join(xfer("catalog", "convnext").out.split())
    assert "Networks with layer norm without attention" in out
    assert "A sweep tries adamw, sgd." in out
    assert "adamw learning_rate 1e-05..0.0005 log" in out
    assert "weight_decay of adamw, lamb and lion 0.01..0.1 log" in out
    assert "decay 0.7..0.9" in out
    assert "Reason: trained and fine-tuned like vision transformers" in out
    assert "arXiv 2201.03545" in out
