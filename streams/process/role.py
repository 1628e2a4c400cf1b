"""What this process is for, where code must behave differently."""

from __future__ import annotations

_roles: set[str] = set()
_JOBS = "jobs"


def become_job_process() -> None:
    """Note that this process executes jobs for a worker that started it."""
    _roles.add(_JOBS)


def is_job_process() -> bool:
    """Whether this process executes jobs for a worker that started it."""
    return _JOBS in _roles
