"""The files in ``deploy``, read as data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"


def documents(path: Path) -> list[dict[str, Any]]:
    """The YAML documents of a file."""
    return [item for item in yaml.safe_load_all(path.read_text()) if item is not None]


def document(path: Path) -> Any:
    """The only YAML document of a file."""
    return yaml.safe_load(path.read_text())


def dashboard() -> dict[str, Any]:
    """The Grafana dashboard."""
    content: dict[str, Any] = json.loads((DEPLOY / "grafana" / "streams.json").read_text())
    return content


def rules() -> list[dict[str, Any]]:
    """The alert rules."""
    return [
        rule for group in document(DEPLOY / "prometheus" / "alerts.yml")["groups"] for rule in group["rules"]
    ]
