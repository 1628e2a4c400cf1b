"""Slots: the lowest free number, given back by the kernel however a process ends."""

from __future__ import annotations

import subprocess
import sys

from streams.slot import Slot


def test_workers_of_one_app_get_the_lowest_free_numbers(tmp_path):
    with Slot("app", tmp_path) as first, Slot("app", tmp_path) as second:
        assert (first.number, second.number) == (0, 1)
        first.release()
        with Slot("app", tmp_path) as third:
            assert third.number == 0


def test_apps_do_not_share_numbers(tmp_path):
    with Slot("one", tmp_path) as one, Slot("other/app", tmp_path) as other:
        assert (one.number, other.number) == (0, 0)


def test_a_killed_process_holds_no_slot(tmp_path):
    program = (
        "import sys, pathlib; from streams.slot import Slot\n"
        "slot = Slot('app', pathlib.Path(sys.argv[1])); print(slot.number, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"0\n"
        with Slot("app", tmp_path) as other:
            assert other.number == 1
        process.kill()
        process.wait()
    with Slot("app", tmp_path) as again:
        assert again.number == 0
