"""The settings of a Django project whose tasks are jobs."""

import tempfile
from pathlib import Path

SECRET_KEY = "tests"
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(Path(tempfile.gettempdir()) / "streams-tests-django.sqlite3"),
    }
}
TASKS = {
    "default": {
        "BACKEND": "streams.django.StreamsBackend",
        "QUEUES": ["default", "mail", "slow", "process"],
        "OPTIONS": {"app": "tests.jobs.django_shop:app"},
    }
}

# Django makes it the time zone of the process, which has other tests too.
TIME_ZONE = "UTC"
