"""The operator of sink connectors: batches are collected until the worker writes them at a commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from streams.operators import Operator

if TYPE_CHECKING:
    from streams.operators import Binding, Children, Forward


@dataclass(frozen=True, slots=True)
class Deliver(Operator):
    """Passes batches to the worker, for the sink that ``connector`` names the kind of."""

    terminal: ClassVar[bool] = True

    connector: str

    @property
    def kind(self) -> str:
        return self.connector

    def bind(self, step: Binding, children: Children) -> Forward:  # noqa: ARG002 - a sink has no children
        return step.deliver
