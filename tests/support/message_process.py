"""The other side of a ZeroMQ socket as a process of its own, which tests kill, freeze and start again.

``receive ADDRESS FILE``: bound there, appends each message to the file as a line of JSON (frames as text).
``send ADDRESS FILE START COUNT SIZE``: bound there, sends numbers with so many bytes; when nothing is taken
for half a second, the file says ``waiting``, and at the end ``sent``, with how many were.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import zmq

HIGH_WATER_MARK = 50
"""Of both kinds, so that what their buffers hold is small."""


class MessageProcess:
    """One such process."""

    def __init__(self, *arguments: object) -> None:
        root = Path(__file__).parents[2]
        command = [sys.executable, "-m", "tests.support.message_process", *map(str, arguments)]
        self.process = subprocess.Popen(command, cwd=root)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def received(file: Path) -> list[list[str]]:
    """The messages that processes have received so far; the line that a kill has cut is left out."""
    return [json.loads(line) for line in _complete_lines(file)]


def sent(file: Path) -> tuple[str, int]:
    """What a sender does now, and how many messages were taken from it by then."""
    lines = _complete_lines(file)
    state, count = lines[-1].split() if lines else ("begun", "0")
    return state, int(count)


def _complete_lines(file: Path) -> list[str]:
    text = file.read_text() if file.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def _cut_unfinished_line(file: Path) -> None:
    """Remove what a killed process wrote of its last line, else the next line would be appended to it."""
    if file.exists():
        content = file.read_bytes()
        os.truncate(file, content.rfind(b"\n") + 1)


def _receive(socket: zmq.Socket[bytes], file: Path) -> None:
    socket.rcvhwm = HIGH_WATER_MARK
    _cut_unfinished_line(file)
    with file.open("a") as out:
        while True:
            out.write(json.dumps([frame.decode() for frame in socket.recv_multipart()]) + "\n")
            out.flush()


def _send(socket: zmq.Socket[bytes], file: Path, start: int, count: int, size: int) -> None:
    socket.sndtimeo = 500
    with file.open("a") as out:
        for number in range(start, start + count):
            waiting = False
            while True:
                try:
                    socket.send(b"%d" % number + b" " * size)
                except zmq.Again:
                    if not waiting:
                        out.write(f"waiting {number - start}\n")
                        out.flush()
                    waiting = True
                else:
                    break
        out.write(f"sent {count}\n")
        out.flush()
    # Until the test kills it: what is in its buffers is on its way.
    zmq.Poller().poll()


def main(kind: str, address: str, file: str, *numbers: str) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.PULL if kind == "receive" else zmq.PUSH)
    socket.sndhwm = socket.rcvhwm = HIGH_WATER_MARK
    socket.bind(address)
    if kind == "receive":
        _receive(socket, Path(file))
    else:
        start, count, size = map(int, numbers)
        _send(socket, Path(file), start, count, size)


if __name__ == "__main__":
    main(*sys.argv[1:])
