"""The Grafana dashboard as a file: what Grafana would complain about, or show wrongly."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from tests.support.deploy import dashboard

DASHBOARD = dashboard()
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]


def test_the_panels_have_numbers_of_their_own():
    numbers = [panel["id"] for panel in PANELS]
    assert len(set(numbers)) == len(numbers)


def test_the_panels_lie_beside_each_other():
    places = [panel["gridPos"] for panel in PANELS]
    for place in places:
        assert place["x"] >= 0
        assert place["w"] > 0
        assert place["h"] > 0
        assert place["x"] + place["w"] <= 24
    for one, other in combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


def test_the_rows_are_those_of_the_documentation():
    assert [panel["title"] for panel in PANELS if panel["type"] == "row"] == [
        "Now",
        "Waiting time",
        "Rates",
        "Partitions",
        "Steps",
        "Workers and rebalances",
        "Dead letters",
        "Jobs",
        "Connectors",
    ]


@pytest.mark.parametrize(
    "panel", [panel for panel in PANELS if panel["type"] != "row"], ids=lambda panel: panel["title"]
)
def test_a_panel_asks_the_chosen_server_for_the_chosen_app(panel):
    assert panel["title"]
    assert panel["description"]
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references)
    for part in (panel, *panel["targets"]):
        assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        assert 'instance=~"$instance"' in target["expr"]


def test_the_variables_choose_the_server_and_the_app():
    variables = {item["name"]: item for item in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "app", "instance"]
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["app"]["query"]["query"] == "label_values(streams_worker_info, app)"
    assert (
        variables["instance"]["query"]["query"] == 'label_values(streams_worker_info{app="$app"}, instance)'
    )
    assert variables["instance"]["includeAll"] is True
    assert DASHBOARD["schemaVersion"] >= 39
