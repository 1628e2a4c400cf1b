"""Push and pull with ZeroMQ: work is distributed among workers, and their results are collected.

The two programs at the ends are plain ZeroMQ, as on its introductory pages, and stay as they are:
``python -m apps.queues.push_pull push 100`` pushes numbers, ``… pull 100`` collects as many results. Between
them, ``streams run apps.queues.push_pull:app`` is the worker, of which there may be many. What it has
received and committed is in a topic, and not lost with it, unlike what a worker with sockets alone has.
"""

from __future__ import annotations

import os
import sys

import zmq

from streams import App, Json
from streams.connectors.zeromq import PullSource, PushSink

PREFIX = os.environ.get("QUEUES_PREFIX", "")
NUMBERS = os.environ.get("NUMBERS", "tcp://127.0.0.1:5557")
RESULTS = os.environ.get("RESULTS", "tcp://127.0.0.1:5558")

app = App(f"{PREFIX}squares")

numbers = app.source(PullSource(connect=NUMBERS, value=Json(int)), store="numbers")
squares = numbers.map(lambda number: number * number)
squares.sink(PushSink(connect=RESULTS, value=Json(int), frames=["value"]), store="results", value=Json(int))


def push(count: int) -> None:
    """Push numbers to those that pull."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.bind(NUMBERS)
        for number in range(count):
            socket.send(b"%d" % number)


def pull(count: int) -> int:
    """Collect results, and return their sum."""
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.bind(RESULTS)
        return sum(int(socket.recv()) for _ in range(count))


if __name__ == "__main__":
    if sys.argv[1] == "push":
        push(int(sys.argv[2]))
    else:
        print(pull(int(sys.argv[2])))
