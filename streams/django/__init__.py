"""A backend of ``django.tasks`` on an app's queue of jobs: Django 6.0 and later."""

from streams.django.backend import StreamsBackend
from streams.django.execution import add_tasks
from streams.django.task_call import TaskCall

__all__ = ["StreamsBackend", "TaskCall", "add_tasks"]
