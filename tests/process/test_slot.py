"""Slots: the lowest free number, released by the kernel however a process ends."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from streams.errors import ConfigurationError
from streams.process.slot import Slot, default_state_dir


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
        "import sys, pathlib; from streams.process.slot import Slot\n"
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


def test_the_worker_id_is_stable_over_restarts_and_differs_on_one_machine(tmp_path):
    with Slot("app", tmp_path) as first, Slot("app", tmp_path) as second:
        ids = (first.worker_id, second.worker_id)
    assert ids == (f"{socket.gethostname()}-0", f"{socket.gethostname()}-1")
    with Slot("app", tmp_path) as again:
        assert again.worker_id == ids[0]


def test_a_folder_that_cannot_be_made_is_refused_with_advice(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot be created.*\n.*set state_dir .*a writable folder"):
        Slot("app", tmp_path / "file")


def test_a_child_of_a_worker_does_not_hold_its_slot(tmp_path):
    slot = Slot("app", tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    ) as child:
        slot.release()
        with Slot("app", tmp_path) as again:
            assert again.number == 0
        assert child.stdin is not None
        child.stdin.close()


def test_the_default_folder_is_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_state_dir() == tmp_path / "streams" / "state"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_state_dir() == tmp_path / ".cache" / "streams" / "state"


UNPRIVILEGED = """
import os, pathlib, sys
from streams.errors import ConfigurationError
from streams.process.slot import Slot
# Only now: the interpreter's own files may be closed to other users.
os.setgid(65534), os.setuid(65534)
try:
    Slot("app", pathlib.Path(sys.argv[1]))
except ConfigurationError as error:
    print(error)
else:
    print("taken")
"""


def as_nobody(folder: Path) -> str:
    """The error for a slot in ``folder`` of a user without rights."""
    return subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, str(folder)], capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture
def open_folder():
    # The folders that pytest makes are closed to other users.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_folder_of_another_user_is_refused_with_advice(open_folder):
    assert as_nobody(open_folder) == "taken\n"
    shutil.rmtree(open_folder / "app")
    (open_folder / "app").mkdir()
    assert re.search(
        r"0\.slot, which gives a worker its number, cannot be opened[\s\S]*state_dir", as_nobody(open_folder)
    )
    (open_folder / "app").chmod(0o777)
    (open_folder / "app" / "0").mkdir()
    assert re.search(r"app/0 cannot be used[\s\S]*hint: set state_dir", as_nobody(open_folder))
    (open_folder / "app" / "0.slot").unlink()
    (open_folder / "app" / "0.slot").touch(0o400)
    assert "0.slot" in as_nobody(open_folder)


def test_a_file_system_without_locks_is_refused_and_not_taken_for_many_workers(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(ConfigurationError, match=r"cannot be locked.*No locks available[\s\S]*local disk"):
        Slot("app", tmp_path)
    assert [path.name for path in (tmp_path / "app").iterdir()] == ["0.slot"]


def test_without_a_home_folder_the_error_names_the_setting(monkeypatch):
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)
    with pytest.raises(ConfigurationError, match=r"home[\s\S]*hint: set state_dir"):
        default_state_dir()
