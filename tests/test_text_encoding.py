"""Text files are UTF-8 in any locale, and names in other encodings are refused by name."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xfer.data.layouts import read_source
from xfer.data.pack import build_pack

ROOT = Path(__file__).parents[1]
ASCII_LOCALE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"}
"""Environment in which Python reads and writes text as ASCII by default."""


def calls_without_encoding(path):
    """Yield the lines of calls that open a text file without an encoding."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        modes = [value.value for value in node.args if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        text_mode = name in ("open", "fdopen") and modes and set(modes[0]) <= set("rwxat+")
        keywords = {keyword.arg for keyword in node.keywords}
        if (name in ("read_text", "write_text") or text_mode) and "encoding" not in keywords:
            yield f"{path.relative_to(ROOT)}:{node.lineno}"
        if {"text", "universal_newlines"} & keywords and "encoding" not in keywords:
            yield f"{path.relative_to(ROOT)}:{node.lineno}"


def test_text_files_are_opened_with_an_encoding():
    files = [file for package in ("xfer", "sweeps") for file in (ROOT / package).rglob("*.py")]
    assert len(files) > 100
    assert [line for file in files for line in calls_without_encoding(file)] == []


def train(data, weights, out, **environment):
    command = [
        *(sys.executable, "-m", "xfer", "train", "--data", str(data), "--backbone", "test_efficientnet"),
        *("--weights", str(weights), "--image-size", "32", "--strategy", "linear_probe", "--epochs", "1"),
        *("--out", str(out), "--storage", str(out.parent / "storage")),
    ]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, timeout=240, check=False
    )


@pytest.mark.slow
@pytest.mark.nightly
def test_a_model_of_classes_with_any_characters_is_written_and_used_in_an_ascii_locale(image_folder, weights, tmp_path):
    data = tmp_path / "photos"
    shutil.copytree(image_folder, data)
    for name, folder in zip(("Ästling", "烏"), sorted(data.iterdir()), strict=False):
        folder.rename(data / name)
    result = train(data, weights, tmp_path / "run", **ASCII_LOCALE)
    assert result.returncode == 0, result.stderr
    command = [sys.executable, "-m", "xfer", "predict", "--model", str(tmp_path / "run" / "model")]
    photo = next(file for file in sorted((data / "烏").rglob("*")) if file.is_file())
    answer = subprocess.run(
        [*command, str(photo)],
        cwd=ROOT,
        env={**os.environ, **ASCII_LOCALE},
        capture_output=True,
        timeout=240,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert "Ästling".encode() in answer.stdout


def test_characters_that_the_terminal_cannot_show_are_escaped():
    code = "from xfer.text_output import escape_unencodable; escape_unencodable(); print('\\u70cf \\udce9')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert result.stdout.split() == [b"\\u70cf", b"\\udce9"]


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS refuses such names itself")
@pytest.mark.parametrize("kind", ["class", "data set"])
def test_a_class_or_data_set_name_that_is_not_utf8_is_refused_by_name(image_folder, tmp_path, kind):
    data = tmp_path / "photos"
    shutil.copytree(image_folder, data)
    old = data if kind == "data set" else sorted(path for path in data.iterdir() if path.is_dir())[0]
    new = old.rename(old.with_name("caf\udce9"))
    with pytest.raises(ValueError, match=r"names that are not UTF-8: caf\\xe9\. Rename these folders") as caught:
        read_source(new if kind == "data set" else data)
    str(caught.value).encode("utf-8")


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS refuses such names itself")
def test_a_damaged_file_whose_name_is_not_utf8_is_named_with_its_bytes(image_folder, tmp_path):
    data = tmp_path / "photos"
    shutil.copytree(image_folder, data)
    folder = sorted(path for path in data.iterdir() if path.is_dir())[0]
    (folder / "caf\udce9.png").write_bytes(b"not an image")
    (skipped,) = build_pack(read_source(data), 8, tmp_path / "packs").skipped
    assert skipped.startswith(f"{folder.name}/caf\\xe9.png: ")
    skipped.encode("utf-8")
