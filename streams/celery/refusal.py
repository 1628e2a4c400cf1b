"""Why a task is not executed, in the words of its dead letter and of its result."""

from __future__ import annotations

from typing import Final

NOT_REGISTERED: Final = ("celery.exceptions", "NotRegistered")
INVALID: Final = ("celery.exceptions", "InvalidTaskError")
DISALLOWED: Final = ("kombu.exceptions", "ContentDisallowed")
MISFIT: Final = ("builtins", "TypeError")
"""What Celery's workers raise in such a case, as module and class: the caller gets that exception."""


class TaskRefused(ValueError):
    """A message is not made a job. ``kind`` is the exception that the task's caller gets."""

    def __init__(self, message: str, kind: tuple[str, str] = INVALID) -> None:
        super().__init__(message)
        self.kind = kind
        self.task_id: str | None = None
        """The task whose caller waits for a result, if one does."""
