"""Attack 2: passwords and tokens reach neither logs, stored objects, reports and tags nor the files of other users."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sweeps.engine.console.log_redirect import redirect_output
from sweeps.engine.console.provenance import command_line
from sweeps.engine.console.reports import render_report
from sweeps.engine.storage import json_objects
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.tracking import client, mapping
from sweeps.engine.trials import trainable
from sweeps.engine.trials.ray_connection import protect_token_file
from tests.engine.conftest import a_plan, a_recipe, a_record, an_epoch
from xfer.storage.redaction import redact, redact_all

PASSWORD = "pa/ss:w@rd'!"
ADDRESS = f"http://bob:{PASSWORD}@tracking.example:5000/prefix"
TOKEN = "hf_AbCdEfGhIjKlMnOp"

PASSWORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C"), exclude_characters='"<>'), min_size=4)
"""Anything that an address can hold. White space and the excluded characters end an address."""


@given(PASSWORDS, st.sampled_from(["http", "https", "postgresql+psycopg", "s3", "ftp"]), st.text(max_size=9))
@example("p@ss/word", "https", "")
def test_no_password_of_an_address_is_left_in_a_text(password: str, scheme: str, before: str) -> None:
    secret = f"<<{password}>>".replace("<<", "q1").replace(">>", "q2")
    for user in ("bob", ""):
        text = redact(f"{before} {scheme}://{user}:{secret}@host/path failed")
        assert secret not in text
        assert text.endswith(f" {scheme}://host/path failed")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://host/a?token=abc&name=b", "https://host/a?token=***&name=b"),
        ("https://b.s3.example/k?X-Amz-Credential=a%2Fb&X-Amz-Signature=0f", None),
        ("https://account.blob.example/c?sv=2024&sig=abc%3D", "https://account.blob.example/c?sv=2024&sig=***"),
        ("Authorization: Bearer abcdefgh.ijkl-mnop", "Authorization: Bearer ***"),
        ("Authorization: Basic Ym9iOnNlY3JldA==", "Authorization: Basic ***"),
    ],
)
def test_tokens_in_addresses_and_headers_are_hidden(text: str, clean: str | None) -> None:
    assert redact(text) == (clean or "https://b.s3.example/k?X-Amz-Credential=***&X-Amz-Signature=***")


@pytest.mark.parametrize(
    "text",
    [
        "http://host:5000/#/experiments/1",
        "sqlite:////data/me@home/runs.db",
        "s3://bucket/runs@2026",
        "bob@example.org wrote: 3.5 @ 10:30",
        "basic cnn with bearer bonds",
        "path:with:colons@sign",
    ],
)
def test_texts_without_a_secret_are_unchanged(text: str) -> None:
    assert redact(text) == text


def test_redaction_reaches_every_text_of_plain_data_and_is_stable() -> None:
    clean = redact_all({ADDRESS: [ADDRESS, {"a": (ADDRESS, 1, None, 0.5, True)}]})
    assert PASSWORD not in str(clean)
    assert redact_all(clean) == clean


def test_secrets_of_the_environment_are_hidden_wherever_they_appear(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, TOKEN)
        assert redact(f"login as bob with {TOKEN} failed") == "login as bob with *** failed", name
        monkeypatch.delenv(name)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "disabled")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN", "/var/run/token")
    assert redact("disabled, see /var/run/token") == "disabled, see /var/run/token"


def text_of(path: Path) -> str:
    """The content of a file as text; that of a compressed table as CSV."""
    if path.suffix == ".parquet":
        return pd.read_parquet(path).to_csv()
    return path.read_text(encoding="utf-8")


def test_no_output_of_a_sweep_holds_a_password_or_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Puts both into everything that a user or a library can put them into, and looks for them in every output."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", TOKEN)
    monkeypatch.setattr(sys, "argv", ["sweeps", "--tracking-uri", ADDRESS, f"--data={ADDRESS}"])
    leak = f"no answer from {ADDRESS} with {TOKEN}"
    store = Store(tmp_path / "runs" / "colours")
    plan = a_plan(finalists=0)
    plan["provenance"]["command"] = f"{command_line()} {leak}"
    plan["data"] |= {"folder": leak, "notes": [leak]}
    store.put_plan(plan | {"question": leak})
    store.add_trial(Trial("0000", "search", {"strategy": leak}, a_recipe()))
    store.add_epoch("0000", an_epoch(1, 0.2))
    store.add_record(a_record("0000"))
    store.add_record(a_record("0001", status="failed", error=leak))
    store.decide("openings", {"at": leak, "finalists": [leak]})
    sent: list[Any] = []
    fake = SimpleNamespace(log_batch=lambda *arguments, **named: sent.append((arguments, named)))
    run = client.MirroredRun("id", "RUNNING", "running")
    client.log_batch(fake, run, params={"data": leak}, tags={"xfer.error": leak})
    client.log_batch(fake, run, tags=mapping.record_tags(store.record("0001")))  # type: ignore[arg-type]
    assert len(sent) == 2
    assert PASSWORD not in str(
        [[str(vars(entity)) for entity in each] for arguments, _ in sent for each in arguments[2:]]
    )
    assert TOKEN not in str([[str(vars(entity)) for entity in each] for arguments, _ in sent for each in arguments[2:]])
    render_report(store, tmp_path / "reports")
    with redirect_output(tmp_path / "runs" / "logs" / "driver.log"):
        logging.getLogger("test").warning("%s", leak)
        print(leak)
        print(leak, file=sys.stderr)
        try:
            raise OSError(leak)
        except OSError:
            logging.getLogger("test").exception("failed")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"plan.json", "record.json", "report.md", "report.html", "driver.log"} <= {path.name for path in files}
    for path in files:
        content = text_of(path)
        assert PASSWORD not in content, path
        assert "bob" not in content, path
        assert TOKEN not in content, path
    assert "tracking.example" in (tmp_path / "reports" / "colours" / "report.md").read_text(encoding="utf-8")


def test_a_plan_of_an_earlier_version_is_shown_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "colours")
    plan = a_plan(finalists=0)
    plan["provenance"]["command"] = f"python -m sweeps.folder --tracking-uri {ADDRESS}"
    with monkeypatch.context() as patch:
        patch.setattr(json_objects, "redact_all", lambda value: value)
        store.put_plan(plan)
    assert PASSWORD in (store.folder / "plan.json").read_text(encoding="utf-8")
    assert PASSWORD not in str(store.plan())
    render_report(store, tmp_path / "reports")
    assert all(PASSWORD not in text_of(path) for path in (tmp_path / "reports").rglob("*.*"))


def test_the_log_of_trials_holds_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(trainable, "fetch_pack", lambda folder: None)
    (tmp_path / "colours").mkdir()
    trainable.open_context(trainable.TrialContext(str(tmp_path / "colours"), "", None, 1, 0.0))
    logging.getLogger("trial").error("no answer from %s", ADDRESS)
    for handler in root.handlers:
        handler.close()
    text = (tmp_path / "colours" / "logs" / "trials.log").read_text(encoding="utf-8")
    assert "no answer from http://tracking.example" in text
    assert PASSWORD not in text


@pytest.mark.parametrize("exists", [True, False])
def test_the_token_of_ray_is_readable_by_its_owner_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    token = tmp_path / ".ray" / "auth_token"
    if exists:
        token.parent.mkdir()
        token.write_text("a" * 64, encoding="utf-8")
        token.chmod(0o644)
    protect_token_file()
    assert token.stat().st_mode & 0o777 == 0o600
    content = token.read_text(encoding="utf-8")
    assert content == "a" * 64 if exists else len(content) == 64
    protect_token_file()
    assert token.read_text(encoding="utf-8") == content
