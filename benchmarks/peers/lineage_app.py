"""This library as in ``streams_app``, with the setting ``lineage``: each result names its input records."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

os.environ["STREAMS_LINEAGE"] = "true"
runpy.run_path(str(Path(__file__).with_name("streams_app.py")), run_name="__main__")
