"""A way over from Celery: the tasks that its programs send are executed as jobs of an app."""

from streams.celery.bridge import read_celery

__all__ = ["read_celery"]
