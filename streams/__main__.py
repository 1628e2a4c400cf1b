"""``python -m streams`` is the ``streams`` command.

The supervisor runs this file by its path, with ``python -P``: ``-m`` would put the current folder first on
the module search path, where a program's own ``json.py`` or ``streams.py`` takes the place of what is meant.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import NoReturn


def _import_this_package() -> None:
    """Import ``streams`` from where this file is, wherever else there may be another one."""
    spec = importlib.util.spec_from_file_location("streams", Path(__file__).with_name("__init__.py"))
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["streams"] = package
    spec.loader.exec_module(package)


if not __package__:
    _import_this_package()

from streams.process.early_signals import EarlySignals  # noqa: E402 - the package must be there first


def main() -> NoReturn:
    """Run the command line and exit, with signals handled from here on."""
    a_worker = sys.argv[1:2] == ["run"]
    early = EarlySignals(a_worker=a_worker)
    from streams.cli.main import main as run_command_line  # noqa: PLC0415 - it loads what takes long

    if not a_worker:
        early.forget()
    run_command_line()


# Processes of a simulation run this file too, under another name, before they begin.
if __name__ == "__main__":
    main()
