"""Starts programs of this repository as processes."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path(__file__).parents[2]


class Programs:
    """Starts programs in a folder, with an environment; what still runs at the end is killed."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = os.environ | {"PYTHONPATH": str(ROOT), **environment}
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        with (self._folder / "log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=self._folder,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._started.append(process)
        return process

    def module(self, name: str) -> Any:
        """The program as a module in this process, which saves its start."""
        with mock.patch.dict(os.environ, self._environment):
            sys.modules.pop(name, None)
            return importlib.import_module(name)

    def output(self, *arguments: str) -> str:
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, (self._folder / "log").read_text()
        return output

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for a condition that may take some time to find out, unless a program has failed."""
        deadline = time.monotonic() + 120
        while not condition():
            failed = [each.args for each in self._started if each.poll() not in {None, 0, -signal.SIGKILL}]
            assert not failed, f"{failed}: {(self._folder / 'log').read_text()}"
            assert time.monotonic() < deadline, f"{what} not reached within 120 s"
            time.sleep(0.2)

    def stop(self, process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0, (self._folder / "log").read_text()

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
