"""This library: an app that a worker runs and a command replays. The environment has its job and topics."""

from __future__ import annotations

import os

from streams import App, Bytes, Json, Tumbling

job, servers, input_topic, output_topic, group = os.environ["REPLAY_BENCH"].split()
app = App(group, bootstrap_servers=servers, commit_interval=1.0, state_dir="state", log_format="json")
records = app.stream(input_topic, key=Bytes(), value=Bytes())
if job == "count-windows":
    counts = records.group_by_key().window(Tumbling(seconds=10)).count("counts")
    counts.updates().to(output_topic, value=Json())
else:
    records.to(output_topic)
