"""Stream processing on Kafka in plain Python: exactly once, in batches, as consumer-group replicas.

The names in ``__all__`` are public; everything else may change between versions. They are imported when the
first of them is used, so that the command can handle signals before imports that take long.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.public import *  # noqa: F403 - the same names, which ``public.__all__`` lists
    from streams.public import __all__ as __all__
else:

    def __getattr__(name: str) -> object:
        # Tools and the import system look for names such as __path__; these must not trigger the import.
        if not name.startswith("__") or name == "__all__":
            public = import_module("streams.public")
            if name == "__all__" or name in public.__all__:
                return getattr(public, name)
            if name in globals():
                # A submodule that was imported in the meantime.
                return globals()[name]
        raise AttributeError(f"module 'streams' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return list(import_module("streams.public").__all__)
