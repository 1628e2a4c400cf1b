"""The other side of a ZeroMQ bridge, a process of its own, which is bound to its address.

``python -m apps.bridges.zeromq_side push|pub ADDRESS FILE`` sends numbers: each line of its standard input
says up to which one. ``… pull|sub ADDRESS FILE`` appends the number in each message to the file, as a line,
until its standard input ends. A sender writes down what it sends before it does: after a kill, the next one
sends none of it again. A publisher waits for its first subscriber. All end with their standard input.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from queue import SimpleQueue

import zmq

BATCH = 10
KINDS = {"push": zmq.PUSH, "pub": zmq.XPUB, "pull": zmq.PULL, "sub": zmq.SUB}


def send(socket: zmq.Socket[bytes], file: Path) -> None:
    """Send the numbers after those in the file."""
    done = int(file.read_text()) if file.exists() else 0
    ends: SimpleQueue[int] = SimpleQueue()
    threading.Thread(target=_read_ends, args=[ends], daemon=True).start()
    if socket.type == zmq.XPUB:
        # A subscription: without one, what is sent would be dropped.
        socket.recv()
    while True:
        end = ends.get()
        while done < end:
            batch = range(done, min(end, done + BATCH))
            done = batch.stop
            new = file.with_suffix(".new")
            new.write_text(str(done))
            new.replace(file)
            for number in batch:
                socket.send(b"%d" % number)


def _read_ends(ends: SimpleQueue[int]) -> None:
    for line in sys.stdin:
        ends.put(int(line))
    # The program that started this one is gone. Without a peer the other thread would wait for ever.
    os._exit(0)


def receive(socket: zmq.Socket[bytes], file: Path) -> None:
    """Write down what arrives."""
    if file.exists():
        # A kill may have cut the last line.
        content = file.read_bytes()
        os.truncate(file, content.rfind(b"\n") + 1)
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    with file.open("ab", buffering=0) as out:
        while ready := dict(poller.poll()):
            if socket in ready:
                out.write(socket.recv_multipart()[0] + b"\n")
            elif not os.read(sys.stdin.fileno(), 1_024):
                # The program that started this one is gone.
                break


def numbers(file: Path) -> list[int]:
    """The numbers that receivers have written down."""
    content = file.read_bytes() if file.exists() else b""
    return list(map(int, content[: content.rfind(b"\n") + 1].split()))


def main(kind: str, address: str, file: str) -> None:
    """Send, or receive."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(KINDS[kind])
    if kind == "sub":
        socket.subscribe(b"")
    socket.bind(address)
    (send if kind in {"push", "pub"} else receive)(socket, Path(file))


if __name__ == "__main__":
    main(*sys.argv[1:])
