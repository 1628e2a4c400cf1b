"""What the connectors check of their options, and before a worker joins its group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.connectors.zeromq.curve import CurveClient, CurveServer, check_keys
from streams.errors import ConfigurationError, ConnectorError

if TYPE_CHECKING:
    from streams.connectors.zeromq.endpoints import Endpoints


def check_side(name: str, endpoints: Endpoints, curve: CurveServer | CurveClient | None) -> None:
    """Check that the keys are those of this side. Raises ``ConfigurationError``."""
    if curve is None:
        return
    wanted = CurveServer if endpoints.bound else CurveClient
    if not isinstance(curve, wanted):
        side = "bind=" if endpoints.bound else "connect="
        raise ConfigurationError(
            f"{name}: curve= with {side} is a {wanted.__name__}, got {type(curve).__name__}",
            hint="the side that is bound is the server of CURVE, whatever it sends or receives",
        )


def check_count(name: str, option: str, number: int) -> None:
    """Check that an option is a positive number. Raises ``ConfigurationError``."""
    if number < 1:
        raise ConfigurationError(f"{name}: {option} must be positive, got {number}")


def check_place(who: str, endpoints: Endpoints, curve: CurveServer | CurveClient | None) -> None:
    """Read the keys, and look for the folder of a local address. Raises ``ConnectorError``."""
    check_keys(curve)
    folder = endpoints.missing_folder()
    if folder is not None:
        raise ConnectorError(f"{who}: {folder} is not a folder", hint="create it, or correct the address")
