"""Import an app from the user's program."""

from __future__ import annotations

import importlib
import sys
import sysconfig
from pathlib import Path

from streams.app import App
from streams.errors import ConfigurationError


def load_app(target: str) -> App:
    """Import the app at ``module:attribute``, also from the current folder. Raises ``ConfigurationError``."""
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute) or module_name.startswith("."):
        raise ConfigurationError(
            f"{target!r} does not name an app", hint="write MODULE:APP, e.g. shop.orders:app"
        )
    try:
        folder = str(Path.cwd())
    except FileNotFoundError as error:
        raise ConfigurationError(
            "the current folder no longer exists", hint="change to a folder that exists"
        ) from error
    if folder not in sys.path:
        sys.path.insert(_after_the_standard_library(), folder)
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        raise ConfigurationError(
            f"{target!r} names a module of Python's standard library", hint="give your file another name"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        hint = f"looked in {folder} and the Python path"
        if module_name.endswith(".py") or "/" in module_name:
            hint = f"write {module_name.removesuffix('.py').strip('./').replace('/', '.')}:{attribute}"
        raise ConfigurationError(f"module {module_name!r} was not found", hint=hint) from error
    app = getattr(module, attribute, None)
    if not isinstance(app, App):
        found = [name for name, value in vars(module).items() if isinstance(value, App)]
        raise ConfigurationError(
            f"{target!r} is not an App but {type(app).__name__}",
            hint=f"apps in {module_name}: {', '.join(found) or 'none'}",
        )
    return app


def _after_the_standard_library() -> int:
    """The position of a program's folder on the module search path.

    It comes before installed packages and after the standard library. Some modules of the standard library
    are imported late, and a file ``queue.py`` or ``token.py`` in the program's folder would shadow them.
    """
    library = Path(sysconfig.get_path("stdlib"))
    own = [at for at, entry in enumerate(sys.path) if Path(entry) in (library, library / "lib-dynload")]
    return max(own, default=-1) + 1
