"""The maximum size of a cluster, and how lost machines are told from lost processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sweeps.engine.resources import cluster

ROOT = Path(__file__).parents[3]


def test_without_a_cluster_file_there_are_no_worker_types(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XFER_GROWS_TO", raising=False)
    assert cluster.worker_node_types() == ([], None)


def test_the_shipped_cluster_grows_to_eight_gpus_of_any_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ray_bootstrap_config.yaml").write_text((ROOT / "ray_cluster.yaml").read_text())
    assert cluster.max_resource("GPU", *cluster.worker_node_types()) == 8
    assert cluster.max_resource("CPU", *cluster.worker_node_types()) == 64


def test_without_a_file_a_variable_describes_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XFER_GROWS_TO", "4 x CPU=8,GPU=1; 2 x CPU=16")
    assert cluster.max_resource("GPU", *cluster.worker_node_types()) == 4
    assert cluster.max_resource("CPU", *cluster.worker_node_types()) == 64
    monkeypatch.setenv("XFER_GROWS_TO", "plenty")
    with pytest.raises(ValueError, match=r"XFER_GROWS_TO=plenty: write it as 8 x CPU=8,GPU=1; 2 x CPU=16"):
        cluster.worker_node_types()


def test_the_kubernetes_file_describes_its_workers_in_the_variable() -> None:
    text = (ROOT / "clusters" / "kubernetes.yaml").read_text()
    documents = {document["kind"]: document for document in yaml.safe_load_all(text) if document}
    ray, variable = documents["RayCluster"], documents["ConfigMap"]["data"]["XFER_GROWS_TO"]
    groups = ray["spec"]["workerGroupSpecs"]
    assert [kind.max_workers for kind in cluster.parse_worker_types(variable)] == [
        group["maxReplicas"] for group in groups
    ]


def test_processes_lost_with_their_machine_are_told_from_others() -> None:
    from ray.exceptions import ActorUnavailableError, RayActorError

    from sweeps.engine.trials.ray_tune import is_machine_lost

    gone = "The actor died because its node has died. Node Id: ab"
    assert is_machine_lost(RayActorError(error_msg=gone))
    assert is_machine_lost(ActorUnavailableError("connection reset", None))
    assert not is_machine_lost(RayActorError(error_msg="The actor died unexpectedly: its process was killed"))
    assert not is_machine_lost(RayActorError(error_msg=gone, preempted=True)), "Tune has not counted it"
    assert not is_machine_lost(ValueError(gone))
    assert not is_machine_lost(None)


def test_a_lost_machine_does_not_count_as_a_failure_of_its_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.exceptions import RayActorError
    from ray.train._internal import storage
    from ray.tune.experiment.trial import Trial

    from sweeps.engine.trials.ray_tune import LostMachineCallback

    monkeypatch.setattr(storage, "_get_ray_train_session_dir", lambda: str(tmp_path / "artifacts"))
    context = storage.StorageContext(str(tmp_path / "results"), "tune", trial_dir_name="0000")
    trial = Trial("__fake", storage=context, stub=True)
    trial.init_local_path()
    for error, failures in (("its node has died", 0), ("its process was killed", 1), ("its node has died", 1)):
        trial.handle_error(RayActorError(error_msg=f"The actor died because {error}."))
        LostMachineCallback().on_trial_recover(1, [], trial)
        assert trial.run_metadata.num_failures == failures
