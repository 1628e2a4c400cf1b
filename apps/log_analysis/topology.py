"""The app: what becomes of the lines of an access log.

Every line ends as a hit, or as a dead letter with the reason; hits with a server error are also errors.
``LOG_ANALYSIS_PREFIX`` goes before the names of all topics and of the group: for several on one cluster.
"""

from __future__ import annotations

import os
from pathlib import Path

from apps.log_analysis.hit import Hit, parse
from streams import App, Avro, Text, dead_letter

PREFIX = os.environ.get("LOG_ANALYSIS_PREFIX", "")
SCHEMAS = Path(__file__).parents[2] / "schemas"

LINES = f"{PREFIX}access-lines"
HITS = f"{PREFIX}hits"
ERRORS = f"{PREFIX}errors"

hit_serde = Avro(SCHEMAS / "log_analysis.Hit.avsc", Hit)

app = App(f"{PREFIX}log-analysis")

hits = (
    app.stream(LINES, value=Text())
    .map(parse, timestamp=lambda hit: hit.time, on_error=dead_letter)
    .key_by(lambda hit: hit.client, name="by-client")
)
hits.to(HITS, value=hit_serde)
hits.filter(lambda hit: hit.status >= 500, name="server-errors").to(ERRORS, value=hit_serde)
