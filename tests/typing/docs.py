"""``python -m tests.typing.docs``: mypy and pyright read the programs of README and ``docs`` in strict mode.

The Python blocks of a page are one program, as tests/test_docs.py runs them; a fence with a title is a file
beside it. Errors name the page's line.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.pages import PAGES, ROOT, blocks

FOLDER = ROOT / "build" / "docs-types"


def write_programs(folder: Path) -> None:
    """One module for each page with programs, whose lines are those of the page, and the pages' files."""
    for page in PAGES:
        lines: list[str] = []
        for block in blocks(page):
            if block.language != "python":
                continue
            if block.title is not None:
                (folder / block.title).write_text(block.text)
            lines += [""] * (block.line - len(lines)) + block.text.splitlines()
        if lines:
            name = page.stem.lower().replace("-", "_")
            (folder / f"page_{name}.py").write_text("\n".join(lines) + "\n")


def main() -> int:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    write_programs(FOLDER)
    configuration = FOLDER / "pyrightconfig.json"
    configuration.write_text(
        json.dumps({"strict": ["."], "pythonVersion": "3.11", "venvPath": str(ROOT), "venv": ".venv"})
    )
    programs = Path(sys.executable).parent
    files = sorted(map(str, FOLDER.glob("*.py")))
    checks = (
        [str(programs / "mypy"), "--strict", *files],
        [str(programs / "pyright"), "--project", str(configuration)],
    )
    return max(subprocess.run(command, cwd=ROOT, check=False).returncode for command in checks)


if __name__ == "__main__":
    sys.exit(main())
