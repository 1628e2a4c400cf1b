"""``python -m streams`` is the ``streams`` command.

The supervisor runs this file by its path, with ``python -P``: ``-m`` would put the current folder first on
the module search path, where a program's own ``json.py`` or ``streams.py`` would shadow the real module.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
from pathlib import Path
from typing import NoReturn


def _import_this_package() -> None:
    """Import the package ``streams`` that this file belongs to, even if the path has another one."""
    spec = importlib.util.spec_from_file_location("streams", Path(__file__).with_name("__init__.py"))
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["streams"] = package
    spec.loader.exec_module(package)


if not __package__:
    _import_this_package()

from streams.process.early_signals import EarlySignals  # noqa: E402 - the package must be imported first


def main() -> NoReturn:
    """Handle signals, then run the command line and exit."""
    a_worker = sys.argv[1:2] in (["run"], ["source"])
    early = EarlySignals(a_worker=a_worker)
    # What is imported lives as long as the process. To look for garbage in it, now and at the end, takes a
    # third of the CPU time of a short command.
    gc.disable()
    from streams.cli.main import import_command, main as run_command_line  # noqa: PLC0415 - takes long

    import_command(sys.argv[1:2])
    gc.freeze()
    gc.enable()
    if not a_worker:
        early.forget()
    run_command_line()


# The processes of a simulation import this file too, under another name.
if __name__ == "__main__":
    main()
