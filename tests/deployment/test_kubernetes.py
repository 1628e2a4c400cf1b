"""The manifests for Kubernetes: valid by its schemas, and in agreement with the library's settings."""

from __future__ import annotations

import shutil
import subprocess
from importlib.util import find_spec
from typing import Any

import pytest
import yaml

from streams.config import load_settings
from tests.support.deploy import KUBERNETES, ROOT, document, documents

BASE = KUBERNETES / "base"
EXAMPLE = KUBERNETES / "overlays" / "log-analysis"

KINDS = {"Kustomization", "Component"}
"""What kustomize reads, and the cluster never sees."""

CUSTOM = {"PodMonitor", "ScaledObject"}
"""What is defined by other programs in the cluster, so that Kubernetes has no schema of it."""

OLDEST = "1.30"
"""The oldest version of Kubernetes that the manifests are for, as the documentation says."""

SCALED_OBJECT: dict[str, Any] = {
    "scaleTargetRef": {"apiVersion", "kind", "name", "envSourceContainerName"},
    "pollingInterval": int,
    "cooldownPeriod": int,
    "initialCooldownPeriod": int,
    "idleReplicaCount": int,
    "minReplicaCount": int,
    "maxReplicaCount": int,
    "fallback": {"failureThreshold", "replicas", "behavior"},
    "advanced": {"restoreToOriginalReplicaCount", "horizontalPodAutoscalerConfig", "scalingModifiers"},
    "triggers": list,
}
"""The fields of KEDA's ScaledObject, by its reference: types, or the names of the fields within."""

TRIGGER = {"type", "name", "metricType", "useCachedMetrics", "authenticationRef", "metadata"}

PROMETHEUS_TRIGGER = {
    "serverAddress",
    "query",
    "threshold",
    "activationThreshold",
    "namespace",
    "customHeaders",
    "ignoreNullValues",
    "queryParameters",
    "unsafeSsl",
    "authModes",
    "timeout",
}


def manifests() -> list[tuple[str, dict[str, Any]]]:
    """All documents that are sent to a cluster, patches apart."""
    found = []
    for path in sorted([*BASE.glob("*.yaml"), *KUBERNETES.glob("components/*/*.yaml")]):
        found += [
            (str(path.relative_to(KUBERNETES)), item) for item in documents(path) if item["kind"] not in KINDS
        ]
    return found


MANIFESTS = manifests()


def named(kind: str) -> dict[str, Any]:
    (found,) = [item for _, item in MANIFESTS if item["kind"] == kind]
    return found


def pod() -> dict[str, Any]:
    template: dict[str, Any] = named("StatefulSet")["spec"]["template"]["spec"]
    return template


def worker() -> dict[str, Any]:
    (container,) = pod()["containers"]
    return dict(container)


def environment(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in container["env"]}


def validate(item: dict[str, Any]) -> None:
    if find_spec("kubernetes_validate") is None:
        pytest.skip("Kubernetes' schemas are not installed: make check installs them")
    import kubernetes_validate  # noqa: PLC0415 - make check installs it

    for version in (OLDEST, kubernetes_validate.latest_version()):
        kubernetes_validate.validate(item, version, strict=True)


def rendered() -> list[dict[str, Any]]:
    """The example as a cluster gets it."""
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is not installed")
    answer = subprocess.run(
        [program, "kustomize", str(EXAMPLE)], check=True, capture_output=True, text=True, timeout=60
    )
    return [item for item in yaml.safe_load_all(answer.stdout) if item is not None]


@pytest.mark.parametrize(("path", "item"), MANIFESTS, ids=[path for path, _ in MANIFESTS])
def test_a_manifest_is_valid(path, item):
    if item["kind"] not in CUSTOM:
        validate(item)


def test_the_documentation_names_the_oldest_version():
    assert f"Kubernetes {OLDEST}" in (ROOT / "docs" / "deployment.md").read_text()


def test_wrong_fields_are_found():
    item = named("StatefulSet")
    broken = {**item, "spec": {**item["spec"], "podManagmentPolicy": "Parallel"}}
    with pytest.raises(Exception, match="podManagmentPolicy"):
        validate(broken)


def test_the_example_renders_to_valid_manifests():
    items = rendered()
    assert {item["kind"] for item in items} == {item["kind"] for _, item in MANIFESTS}
    for item in items:
        assert item["metadata"]["namespace"] == "log-analysis"
        if item["kind"] not in CUSTOM:
            validate(item)
    (app,) = [item for item in items if item["kind"] == "StatefulSet"]
    # KEDA decides how many there are.
    assert "replicas" not in app["spec"]
    (container,) = app["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/log-analysis:1.0.0"
    assert container["args"] == ["run", "apps.log_analysis.topology:app"]
    assert {"STREAMS_BOOTSTRAP_SERVERS", "STREAMS_WORKER_ID"} <= environment(container).keys()
    (scaled,) = [item for item in items if item["kind"] == "ScaledObject"]
    assert "log-analysis" in scaled["spec"]["triggers"][0]["metadata"]["query"]
    assert "alerts" not in scaled["spec"]["triggers"][0]["metadata"]["query"]


def test_every_file_is_used():
    for folder in [path.parent for path in KUBERNETES.glob("**/kustomization.yaml")]:
        content = document(folder / "kustomization.yaml")
        named_there = set(content.get("resources", [])) | {
            patch["path"] for patch in content.get("patches", []) if "path" in patch
        }
        files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert {name for name in named_there if "/" not in name} == files
        for other in [*content.get("resources", []), *content.get("components", [])]:
            assert (folder / other).exists()


@pytest.mark.parametrize("where", ["base", "example"])
def test_the_environment_consists_of_settings(where):
    if where == "base":
        container = worker()
    else:
        (container,) = document(EXAMPLE / "workers.yaml")["spec"]["template"]["spec"]["containers"]
    known = {
        "STREAMS_HTTP_TOKEN": "a-token-of-some-length",
        "STREAMS_CLIENT": '{"security.protocol": "SASL_SSL"}',
    }
    texts = {
        name: item.get("value", known.get(name, "workers-0")) for name, item in environment(container).items()
    }
    settings = load_settings({}, texts)
    for name in texts:
        assert hasattr(settings, name.removeprefix("STREAMS_").lower())


def test_a_worker_is_its_pod():
    values = environment(worker())
    for name in ("STREAMS_WORKER_ID", "STREAMS_GROUP_INSTANCE_ID"):
        assert values[name]["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert named("StatefulSet")["spec"]["serviceName"] == named("Service")["metadata"]["name"]
    assert named("Service")["spec"]["clusterIP"] == "None"


def test_the_ports_agree():
    port = int(environment(worker())["STREAMS_HTTP_PORT"]["value"])
    (declared,) = worker()["ports"]
    assert (declared["name"], declared["containerPort"]) == ("http", port)
    (service,) = named("Service")["spec"]["ports"]
    assert (service["port"], service["targetPort"]) == (port, "http")
    probes = [worker()[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")]
    assert [(probe["path"], probe["port"]) for probe in probes] == [
        ("/healthz", "http"),
        ("/readyz", "http"),
        ("/healthz", "http"),
    ]
    (scraped,) = named("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert (scraped["port"], scraped["path"]) == ("http", "/metrics")
    (rule,) = named("NetworkPolicy")["spec"]["ingress"]
    assert rule["ports"] == [{"port": "http", "protocol": "TCP"}]


def test_a_worker_has_time_to_stop():
    stop = float(environment(worker())["STREAMS_SHUTDOWN_TIMEOUT"]["value"])
    assert pod()["terminationGracePeriodSeconds"] >= stop + 5


def test_a_worker_writes_only_where_something_is_mounted():
    mounts = {item["mountPath"]: item["name"] for item in worker()["volumeMounts"]}
    assert worker()["securityContext"]["readOnlyRootFilesystem"] is True
    state = environment(worker())["STREAMS_STATE_DIR"]["value"]
    claims = {item["metadata"]["name"] for item in named("StatefulSet")["spec"]["volumeClaimTemplates"]}
    assert mounts[state] in claims
    assert mounts["/tmp"] in {item["name"] for item in pod()["volumes"]}
    assert f"STREAMS_STATE_DIR={state}" in (ROOT / "Dockerfile").read_text()


def test_a_worker_has_no_rights():
    security = pod()["securityContext"]
    assert security["runAsNonRoot"] is True
    assert f"USER {security['runAsUser']}:{security['runAsGroup']}\n" in (ROOT / "Dockerfile").read_text()
    own = worker()["securityContext"]
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert pod()["automountServiceAccountToken"] is False
    assert named("ServiceAccount")["automountServiceAccountToken"] is False
    assert pod()["serviceAccountName"] == named("ServiceAccount")["metadata"]["name"]


def test_secrets_are_not_in_the_files():
    for name, item in environment(worker()).items():
        if name in {"STREAMS_HTTP_TOKEN", "STREAMS_CLIENT"}:
            assert "secretKeyRef" in item["valueFrom"]
    (scraped,) = named("PodMonitor")["spec"]["podMetricsEndpoints"]
    token = environment(worker())["STREAMS_HTTP_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert scraped["authorization"]["credentials"] == token


def test_everything_selects_the_workers_pods():
    labels = named("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        named("StatefulSet")["spec"]["selector"]["matchLabels"],
        named("Service")["spec"]["selector"],
        named("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        named("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        named("PodMonitor")["spec"]["selector"]["matchLabels"],
        *(item["labelSelector"]["matchLabels"] for item in pod()["topologySpreadConstraints"]),
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels.items()


def test_the_autoscaler_is_one_that_keda_takes():
    scaled = named("ScaledObject")
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    spec = scaled["spec"]
    assert spec.keys() <= SCALED_OBJECT.keys()
    for name, value in spec.items():
        expected = SCALED_OBJECT[name]
        if isinstance(expected, set):
            assert value.keys() <= expected
        else:
            assert isinstance(value, expected)
    app = named("StatefulSet")
    assert spec["scaleTargetRef"] == {
        "apiVersion": app["apiVersion"],
        "kind": app["kind"],
        "name": app["metadata"]["name"],
    }
    assert {"failureThreshold", "replicas"} <= spec["fallback"].keys()
    assert 0 < spec["minReplicaCount"] < spec["maxReplicaCount"]
    (trigger,) = spec["triggers"]
    assert trigger.keys() <= TRIGGER
    assert (trigger["type"], trigger["metricType"]) == ("prometheus", "AverageValue")
    assert trigger["metadata"].keys() <= PROMETHEUS_TRIGGER
    # KEDA takes texts only.
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    # One worker for each that is wanted, and no decision without the figures.
    assert trigger["metadata"]["threshold"] == "1"
    assert trigger["metadata"]["ignoreNullValues"] == "false"


def test_the_behaviour_of_the_autoscaler_is_valid():
    """It is passed on to an autoscaler of Kubernetes, whose schema is known."""
    spec = named("ScaledObject")["spec"]
    validate(
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "workers"},
            "spec": {
                "scaleTargetRef": spec["scaleTargetRef"],
                "minReplicas": spec["minReplicaCount"],
                "maxReplicas": spec["maxReplicaCount"],
                "behavior": spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
            },
        }
    )


def test_the_query_of_the_autoscaler_is_the_one_that_is_tested():
    def text(value: str) -> str:
        return " ".join(value.split())

    (trigger,) = named("ScaledObject")["spec"]["triggers"]
    tests = document(KUBERNETES.parent / "prometheus" / "alerts_test.yml")["tests"]
    tested = {text(item["expr"]) for test in tests for item in test.get("promql_expr_test", [])}
    assert tested == {text(trigger["metadata"]["query"])}
    (example,) = [item for item in document(EXAMPLE / "autoscaling.yaml") if item["path"].endswith("/query")]
    assert text(example["value"]).replace("log-analysis", "alerts") in tested
