"""An app, from where the user's program has it."""

from __future__ import annotations

import importlib
import sys
import sysconfig
from pathlib import Path

from streams.app import App
from streams.errors import ConfigurationError


def load_app(target: str) -> App:
    """The app at ``module:attribute``; the current folder is importable. Raises ``ConfigurationError``."""
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute) or module_name.startswith("."):
        raise ConfigurationError(f"{target!r} names no app", hint="write MODULE:APP, e.g. shop.orders:app")
    try:
        folder = str(Path.cwd())
    except FileNotFoundError as error:
        raise ConfigurationError(
            "the current folder does not exist any more", hint="cd to another one"
        ) from error
    if folder not in sys.path:
        sys.path.insert(_after_the_standard_library(), folder)
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        raise ConfigurationError(
            f"{target!r} names a module of Python's own", hint="give your file another name"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        hint = f"looked in {folder} and the Python path"
        if module_name.endswith(".py") or "/" in module_name:
            hint = f"write {module_name.removesuffix('.py').strip('./').replace('/', '.')}:{attribute}"
        raise ConfigurationError(f"module {module_name!r} is not found", hint=hint) from error
    app = getattr(module, attribute, None)
    if not isinstance(app, App):
        found = [name for name, value in vars(module).items() if isinstance(value, App)]
        raise ConfigurationError(
            f"{target!r} is no App but {type(app).__name__}",
            hint=f"apps in {module_name}: {', '.join(found) or 'none'}",
        )
    return app


def _after_the_standard_library() -> int:
    """Where on the module search path a program's folder belongs.

    Before what is installed, and after Python's own modules: some of these are only imported when they are
    needed, and a file ``queue.py`` or ``token.py`` in that folder would then take their place.
    """
    library = Path(sysconfig.get_path("stdlib"))
    own = [at for at, entry in enumerate(sys.path) if Path(entry) in (library, library / "lib-dynload")]
    return max(own, default=-1) + 1
