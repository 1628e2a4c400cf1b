"""Moves messages between ZeroMQ and topics, configured by environment variables."""

from __future__ import annotations

import os

from streams import App, Text
from streams.connectors.zeromq import PullSource, PushSink

PREFIX = os.environ["MESSAGES_PREFIX"]
SENDER = os.environ.get("MESSAGES_SENDER")
RECEIVER = os.environ.get("MESSAGES_RECEIVER")
HIGH_WATER_MARK = 50

app = App(f"{PREFIX}-messages", create_topics=True)
if SENDER:
    numbers = PullSource(connect=SENDER, value=Text(), max_rows=20, high_water_mark=HIGH_WATER_MARK)
    app.source(numbers).map(str.rstrip).to(f"{PREFIX}-out", value=Text())
if RECEIVER:
    receivers = PushSink(
        connect=RECEIVER, key=Text(), value=Text(), max_rows=200, high_water_mark=HIGH_WATER_MARK
    )
    app.stream(f"{PREFIX}-in", key=Text(), value=Text()).sink(receivers)
