"""What the setting ``tracing`` switches on. OpenTelemetry is imported once it is on, and never without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from streams.tracing.spans import JobSpans, WorkerSpans


def worker_spans(application: str, *, enabled: bool) -> WorkerSpans | None:
    """The spans of one worker of an app, if it has any. Raises ``ConfigurationError`` without the extra."""
    if not enabled:
        return None
    check_installed()
    from streams.tracing.worker_spans import OpenTelemetryWorkerSpans  # noqa: PLC0415 - only with the setting

    return OpenTelemetryWorkerSpans(application)


def job_spans(application: str, *, enabled: bool) -> JobSpans | None:
    """The spans of an app's jobs, if it has any. Raises ``ConfigurationError`` without the extra."""
    if not enabled:
        return None
    check_installed()
    from streams.tracing.job_spans import OpenTelemetryJobSpans  # noqa: PLC0415 - only with the setting

    return OpenTelemetryJobSpans(application)


def remote_span(carrier: Mapping[str, str]) -> AbstractContextManager[None]:
    """Make a span of another process the current one."""
    from streams.tracing.propagation import entered  # noqa: PLC0415 - only with the setting

    return entered(carrier)


def check_installed() -> None:
    """Raise ``ConfigurationError`` if the setting ``tracing`` is on and its extra is not installed."""
    try:
        import opentelemetry.trace  # noqa: F401, PLC0415 - only with the setting
    except ImportError as error:
        raise ConfigurationError(
            "the setting tracing needs OpenTelemetry's API, which is not installed",
            hint="pip install 'streams[tracing]', and the SDK with an exporter, e.g. opentelemetry-distro "
            "and opentelemetry-exporter-otlp",
        ) from error
