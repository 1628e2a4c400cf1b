"""The services of docker-compose.yml, which agree with the image and with the library's settings."""

from __future__ import annotations

from typing import Any

import pytest

from apps.log_analysis.topology import app
from streams.config import load_settings
from streams.devstack.registry import VERSION
from tests.support.deploy import ROOT, document

COMPOSE: dict[str, Any] = document(ROOT / "docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]

KEYS = {
    "build",
    "cap_drop",
    "command",
    "depends_on",
    "deploy",
    "environment",
    "healthcheck",
    "image",
    "ports",
    "profiles",
    "read_only",
    "restart",
    "security_opt",
    "stop_grace_period",
    "tmpfs",
    "volumes",
}
"""The keys of a service that are used, as the specification of Compose has them."""


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_known_keys_and_an_image(name):
    service = SERVICES[name]
    assert service.keys() <= KEYS
    assert ("image" in service) != ("build" in service)
    if "image" in service:
        assert ":" in service["image"]
    for other, how in service.get("depends_on", {}).items():
        assert other in SERVICES
        assert how["condition"] in {"service_healthy", "service_completed_successfully"}
        if how["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other]
        assert not SERVICES[other].get("profiles")


def test_the_inputs_of_the_app_are_created_before_it_starts():
    created = {
        SERVICES[name]["command"][2]
        for name in SERVICES["app"]["depends_on"]
        if SERVICES[name]["command"][:2] == ["topics", "create"]
    }
    topology = app.topology
    own = {
        name for name in topology.input_topics if isinstance(name, str) and name.startswith(f"{app.name}-")
    }
    assert created == {*topology.input_topics} - own


@pytest.mark.parametrize("name", ["setup", "setup-owners", "app"])
def test_the_apps_services_have_settings_and_no_rights(name):
    service = SERVICES[name]
    load_settings({}, {key: str(value) for key, value in service["environment"].items()})
    assert service["read_only"] is True
    assert "/tmp" in service["tmpfs"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_a_replica_has_its_own_volume_where_the_image_keeps_state():
    (volume,) = SERVICES["app"]["volumes"]
    # With a name, all replicas would share it: the second one's port would be another.
    assert ":" not in volume
    image = (ROOT / "Dockerfile").read_text()
    assert f"STREAMS_STATE_DIR={volume}" in image
    assert f"install --directory --owner=streams {volume}" in image


def test_ports_and_times_agree():
    service = SERVICES["app"]
    settings = load_settings({}, {key: str(value) for key, value in service["environment"].items()})
    assert f":{settings.http_port}/readyz" in service["healthcheck"]["test"][-1]
    assert int(service["stop_grace_period"].removesuffix("s")) > settings.shutdown_timeout


def test_other_services_start_with_their_profiles_and_are_open_to_this_machine_only():
    assert {name: item["profiles"] for name, item in SERVICES.items() if "profiles" in item} == {
        "postgres": ["postgres"],
        "registry": ["registry"],
    }
    for name in ("postgres", "registry"):
        assert SERVICES[name]["read_only"] is True
        assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])
    assert "wal_level=logical" in SERVICES["postgres"]["command"]
    assert SERVICES["registry"]["image"].endswith(f":{VERSION}")


def test_named_volumes_are_declared():
    used = {
        volume.partition(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
        if not volume.startswith("/")
    }
    assert used == COMPOSE["volumes"].keys()
