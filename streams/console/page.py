"""What a page is: an entry of the navigation, and routes that render templates."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.routing import Route

    from streams.console.console import Console


class Page(NamedTuple):
    """A page of one app, or of the cluster."""

    name: str
    """The last part of its address: ``/apps/{app}/{name}``, or ``/{name}`` for a page of the cluster."""
    title: str
    of_app: bool
    routes: Callable[[Console], Sequence[Route]]
    """Its routes, the one of its own address first. They run in threads, so they may not be coroutines that
    wait for anything else than the request's body."""
