"""Stream processing on Kafka in plain Python: exactly once, in batches, as consumer-group replicas.

The names in ``__all__`` are the public ones; everything else may change between versions. They are loaded
when the first of them is used: the command handles signals before it loads anything that takes long.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.public import *  # noqa: F403 - the same names, which ``public.__all__`` lists
    from streams.public import __all__ as __all__
else:

    def __getattr__(name: str) -> object:
        # What tools and the import system look for is not there, and loads nothing.
        if not name.startswith("__") or name == "__all__":
            public = import_module("streams.public")
            if name == "__all__" or name in public.__all__:
                return getattr(public, name)
            if name in globals():
                # A module that has been loaded on the way.
                return globals()[name]
        raise AttributeError(f"module 'streams' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return list(import_module("streams.public").__all__)
