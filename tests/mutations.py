"""Remove one protection at a time in a copy of the code; its test must then fail: python tests/mutations.py [WORD].

A test of a protection that still passes without it proves nothing. With a word, only mutations whose file or test
contains it are tried. Prints one line per mutation; the exit status is the number of those that no test noticed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutation(NamedTuple):
    """A protection that is removed, and the test that has to fail without it."""

    file: str
    old: str
    new: str
    test: str
    """Module below tests/, and after `::` a part of the names of the tests to run."""


MUTATIONS = (
    Mutation(
        "xfer/data/mat_file.py",
        "        ended = subprocess.run(\n",
        "        _main(*requests)\n        ended = subprocess.run(\n",
        "attacks/test_mutants.py::damaged_files and mat",
    ),
    Mutation(
        "sweeps/engine/console/log_redirect.py",
        "with contextlib.suppress(OSError):  # the disk is full",
        "with contextlib.suppress(KeyError):  # the disk is full",
        "faults/test_passing_faults_of_the_machine.py::reaches_the_screen",
    ),
    Mutation(
        "sweeps/engine/cli.py",
        "        status = EXIT_INTERRUPTED\n",
        "        status = 2\n",
        "test_commands.py::ctrl_c",
    ),
    Mutation(
        "sweeps/engine/trials/ray_tune.py",
        "return isinstance(error, ActorUnavailableError) or NODE_DIED_MESSAGE in str(error)",
        "return False",
        "engine/resources/test_cluster.py",
    ),
    Mutation(
        "xfer/training/checkpoints.py",
        "if name is None or not hashlib.sha256(content).hexdigest().startswith(name[2]):",
        "if name is None:",
        "xfer/training/test_checkpoints.py::damaged or name_of_another",
    ),
    Mutation(
        "sweeps/engine/tracking/mirror.py",
        "self._thread.join(patience_seconds)",
        "self._thread.join()",
        "engine/tracking/test_server_errors.py::hanging",
    ),
    Mutation(
        "xfer/devices/microbatching.py",
        "except (RuntimeError, MemoryError) as error:",
        "except KeyError as error:",
        "xfer/devices/test_microbatching.py::out_of_memory",
    ),
    Mutation(
        "xfer/training/epochs.py",
        '    if not math.isfinite(loss):\n        raise DivergedError(f"the validation loss',
        '    if False:\n        raise DivergedError(f"the validation loss',
        "xfer/test_run.py::test_a_validation_loss_that_is_not_finite_ends_the_run",
    ),
    Mutation(
        "xfer/data/images.py",
        "            return to_square(ImageOps.exif_transpose(image), size)\n",
        "            return to_square(image, size)\n",
        "xfer/data/test_images.py::exif",
    ),
    Mutation(
        "sweeps/engine/samplers/bounded_storage.py",
        "if len(self._ended) <= self._max_trials:",
        "if True:",
        "engine/samplers/test_bounded_storage.py",
    ),
    Mutation(
        "sweeps/engine/planning/plan_file.py",
        "if old.get(name) != new.get(name) and not name.startswith(IGNORED_PLAN_KEYS)",
        "if False",
        "engine/planning/test_same_plan.py",
    ),
    Mutation(
        "sweeps/engine/tracking/server.py",
        'f"{LOCALHOST}:{port},localhost:{port}"',
        '"*"',
        "engine/console/test_ui.py::foreign_host",
    ),
    Mutation(
        "xfer/models/weights_file.py",
        "weights_only=True)",
        "weights_only=False)",
        "attacks/test_dangerous_calls.py::without_pickle",
    ),
    Mutation(
        "sweeps/cluster/fallback.py",
        "yaml.safe_load(",
        "yaml.load(",
        "attacks/test_dangerous_calls.py::what_it_reads",
    ),
    Mutation(
        "xfer/data/images.py",
        "            check_pixels(image)\n            image.draft",
        "            image.draft",
        "xfer/data/test_images.py::too_many_pixels",
    ),
    Mutation(
        "sweeps/reporting/render.py",
        "autoescape=True, finalize",
        "autoescape=False, finalize",
        "reporting/test_render.py",
    ),
    Mutation("xfer/data/images.py", ") > MAX_BYTES:", ") > 10**15:", "xfer/data/test_images.py::too_many_bytes"),
    Mutation(
        "sweeps/engine/plan.py",
        "if value is not None and not low <= value <= high:",
        "if False:",
        "engine/test_options.py::outside_the_limits",
    ),
    Mutation(
        "pyproject.toml",
        '"ray[tune]>=2.59"',
        '"ray[tune]>=2.50"',
        "attacks/test_versions_with_known_holes.py::excludes",
    ),
    Mutation(
        "sweeps/engine/trials/ledger.py",
        " and not self._store.is_empty(name):",
        ":",
        "faults/test_killed_at_random_points.py::one_at_a_time",
    ),
    Mutation(
        "sweeps/engine/trials/ledger.py",
        "if trial.name not in self.records]",
        "if trial.name not in ()]",
        "faults/test_killed_at_random_points.py::several_at_a_time",
    ),
    Mutation(
        "sweeps/engine/trials/trainable.py",
        "            report_to_tune(record)  # the scheduler may not have seen it yet\n",
        "            pass\n",
        "faults/test_killed_at_random_points.py::one_at_a_time",
    ),
    Mutation(
        "sweeps/engine/trials/placement.py",
        "            self._watchdog.start()\n",
        "",
        "faults/test_hanging_process.py::equals_an_undisturbed",
    ),
    Mutation(
        "sweeps/engine/trials/watchdog.py",
        "seconds > beats[key].limit}",
        "False}",
        "engine/trials/test_watchdog.py::after_the_limit",
    ),
    Mutation(
        "sweeps/engine/trials/watchdog.py",
        "elapsed = 0.0 if self._last_look is None else min(now - self._last_look, 2 * LOOK_SECONDS)",
        "elapsed = 0.0 if self._last_look is None else now - self._last_look",
        "engine/trials/test_watchdog.py::stopped_itself",
    ),
    Mutation(
        "sweeps/engine/trials/early_start.py",
        "except BaseException as error:",
        "except ValueError as error:",
        "engine/trials/test_early_start.py::does_not_wait_for_a_start",
    ),
    Mutation(
        "xfer/storage/redaction.py",
        'for name in list(os.environ)\n        if (value := os.environ.get(name, ""))',
        "for name, value in os.environ.items()\n        if value",
        "xfer/storage/test_redaction.py",
    ),
    Mutation(
        "sweeps/engine/storage/store.py",
        'for name in object_store.list_names(self.folder / "trials") if TRIAL_NAME.fullmatch(name)]',
        'for name in object_store.list_names(self.folder / "trials")]',
        "faults/test_torn_state_objects.py::foreign_files",
    ),
    Mutation(
        "sweeps/engine/storage/json_objects.py",
        "if names.fullmatch(name)]",
        'if name.endswith(".json")]',
        "faults/test_torn_state_objects.py::foreign_files",
    ),
    Mutation(
        "xfer/storage/checked_json.py",
        "if not stat.S_ISREG(status.st_mode):",
        "if False:",
        "faults/test_torn_state_objects.py::not_a_file and folder",
    ),
    Mutation(
        "xfer/data/pack.py",
        "if pack.images.shape !=",
        "if False and pack.images.shape !=",
        "faults/test_torn_state_objects.py::pixels_that_do_not_fit",
    ),
    Mutation(
        "xfer/feature_extraction/feature_cache.py",
        "if hashing.sha256_json(description)[:32] != folder.name or",
        "if",
        "faults/test_torn_state_objects.py::under_the_name_of_others",
    ),
    Mutation(
        "xfer/data/quickdraw.py",
        "except Exception as error:  # numpy evaluates",
        "except (ValueError, OSError, EOFError) as error:  # numpy evaluates",
        "faults/test_torn_state_objects.py::damaged_bitmaps",
    ),
    Mutation(
        "sweeps/engine/storage/json_objects.py",
        "checked_json.encode(redact_all(value), indent=1)",
        "checked_json.encode(value, indent=1)",
        "attacks/test_secrets.py::no_output_of_a_sweep",
    ),
    Mutation(
        "sweeps/engine/tracking/client.py",
        "RunTag(key, redact(value))",
        "RunTag(key, value)",
        "attacks/test_secrets.py::no_output_of_a_sweep",
    ),
    Mutation(
        "sweeps/engine/console/log_redirect.py",
        "handler.setFormatter(RedactingFormatter(",
        "handler.setFormatter(logging.Formatter(",
        "attacks/test_secrets.py::no_output_of_a_sweep",
    ),
    Mutation(
        "sweeps/engine/storage/store.py",
        "redact_all(json_objects.read(path))",
        "json_objects.read(path)",
        "attacks/test_secrets.py::earlier_version",
    ),
    Mutation(
        "sweeps/engine/trials/trainable.py",
        "handler.setFormatter(RedactingFormatter(",
        "handler.setFormatter(logging.Formatter(",
        "attacks/test_secrets.py::log_of_trials",
    ),
    Mutation("sweeps/engine/trials/ray_connection.py", "0o600", "0o644", "attacks/test_secrets.py::token_of_ray"),
    Mutation(
        "xfer/training/export.py",
        "if hashing.sha256_file(folder / WEIGHTS_FILE) != card[WEIGHTS_CHECKSUM_KEY]:",
        "if False:",
        "faults/test_killed_while_writing.py::model",
    ),
    Mutation(
        "sweeps/engine/trials/trainable.py",
        "and is_intact(local_cache.sync_down(folder))",
        "",
        "faults/test_killed_while_writing.py::damaged_model",
    ),
    Mutation(
        "xfer/commands/train.py",
        "atomic_write(path, json.dumps(as_dict(value), indent=1).encode())",
        'path.write_text(json.dumps(as_dict(value), indent=1), encoding="utf-8")',
        "faults/test_killed_while_writing.py::atomically",
    ),
    Mutation(
        "sweeps/engine/trials/ledger.py",
        "elif name not in self.trials or not _same_recipe(self.trials[name], record):",
        "elif False:",
        "faults/test_objects_that_belong_together.py::record",
    ),
    Mutation(
        "sweeps/engine/trials/ledger.py",
        "if name not in self.trials and name not in records and not self._store.is_empty(name):",
        "if False:",
        "faults/test_objects_that_belong_together.py::set_aside_as_a_whole",
    ),
    Mutation(
        "sweeps/engine/trials/ledger.py",
        "if finalist.key != record.key:",
        "if False:",
        "faults/test_objects_that_belong_together.py::final_run_of_another_recipe",
    ),
    Mutation(
        "sweeps/engine/storage/store.py",
        'if written and record.phase == "final" and self.has_test(record.trial):',
        "if False:",
        "faults/test_objects_that_belong_together.py::evaluated_again",
    ),
    Mutation(
        "sweeps/engine/sweep.py",
        "trials[name].params or recover_params(record.recipe, self.prepared)",
        "trials[name].params",
        "faults/test_objects_that_belong_together.py::goes_on",
    ),
    Mutation(
        "sweeps/engine/storage/lease.py",
        "    if _is_on_this_machine(lease):\n        return bool(",
        '    if _is_on_this_machine(lease):\n        return lease["expires"] > time.time() and bool(',
        "faults/test_two_drivers.py::suspended or clock",
    ),
    Mutation(
        "sweeps/engine/storage/lease.py",
        'if mine or (lease is not None and lease["holder"] == UNKNOWN):',
        "if mine:",
        "faults/test_two_drivers.py::repairs",
    ),
    Mutation(
        "sweeps/engine/storage/lease.py",
        'return "" if fields[0] in "ZX" else fields[19]',
        "return fields[19]",
        "faults/test_two_drivers.py::suspended",
    ),
    Mutation(
        "sweeps/engine/trials/trainable.py",
        "if machine_faults.is_machine_fault(error):",
        "if False:",
        "faults/test_passing_faults_of_the_machine.py::full_disk_is_tried_again",
    ),
    Mutation(
        "sweeps/engine/trials/stage.py",
        "stopped = self._faults_in_a_row >= machine_faults.MAX_FAULTS_IN_A_ROW\n        if self._next",
        "stopped = False\n        if self._next",
        "faults/test_passing_faults_of_the_machine.py::in_a_row",
    ),
    Mutation(
        "sweeps/engine/cli.py",
        "status = EXIT_MACHINE_FAULT if full else EXIT_INVALID_INPUT",
        "status = EXIT_INVALID_INPUT",
        "faults/test_passing_faults_of_the_machine.py::exit_status",
    ),
    Mutation(
        "xfer/data/file_gate.py",
        "if not stat.S_ISREG(status.st_mode):",
        "if False:",
        "attacks/test_files_that_must_not_be_opened.py::no_layout and cars",
    ),
    Mutation(
        "xfer/data/file_gate.py",
        "if root is not None and not _is_inside(path, root, folders):",
        "if False:",
        "attacks/test_files_that_must_not_be_opened.py::no_layout and torchvision",
    ),
    Mutation(
        "xfer/data/stanford_cars.py",
        "        check_mat_size(file, MAX_MAT_BYTES)\n",
        "",
        "attacks/test_files_that_must_not_be_opened.py::expands",
    ),
)


def fails_without(mutation: Mutation) -> bool:
    """Return whether the test of a protection fails in a copy of the code without it.

    Raises:
        ValueError: the protection is not in the file exactly once, or none of the tests was run.
    """
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        for name in ("xfer", "sweeps", "tests", "benchmarks"):
            shutil.copytree(ROOT / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        file = Path(folder, mutation.file)
        text = file.read_text(encoding="utf-8")
        wanted = 2 if mutation.old == "0o600" else 1
        if text.count(mutation.old) != wanted:
            raise ValueError(f"{mutation.file} has {text.count(mutation.old)} times: {mutation.old}")
        file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
        module, _, names = mutation.test.partition("::")
        command = [sys.executable, "-m", "pytest", "-x", "-q", f"tests/{module}", "-k", names]
        ended = subprocess.run(
            command, cwd=folder, env={**os.environ, "PYTHONPATH": folder}, capture_output=True, text=True, check=False
        )
    if ended.returncode not in (0, 1):
        raise ValueError(f"{mutation.test} was not run: {ended.stdout[-500:]}{ended.stderr[-500:]}")
    return ended.returncode == 1


def main(word: str = "") -> int:
    """Try all mutations; return the number of those that no test noticed."""
    unnoticed = 0
    for mutation in MUTATIONS:
        if word in mutation.file or word in mutation.test:
            noticed = fails_without(mutation)
            unnoticed += not noticed
            print(
                f"{'noticed' if noticed else 'NOT NOTICED'}  {mutation.test}  without  {mutation.old[:60]!r}",
                flush=True,
            )
    return unnoticed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
