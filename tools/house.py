"""The house rules that no off-the-shelf linter holds: file length, and no path or host of one machine in the tree."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

MAX_LINES = 400
FOREIGN = re.compile(r"/work/|/root/|/opt/(?:pypi|wheels)")


def main() -> int:
    """Return 1 and say why for each file that breaks a rule, else 0."""
    command = ["git", "ls-files", "*.py", "*.md", "*.toml", "*.lock", "Makefile", ".ci/run"]
    tracked = subprocess.run(command, check=True, capture_output=True, text=True)
    faults = []
    for name in tracked.stdout.split():
        path = Path(name)
        if not path.exists() or name == "tools/house.py":
            continue
        text = path.read_text(encoding="utf-8")
        lines = text.count("\n")
        if path.suffix == ".py" and lines > MAX_LINES:
            faults.append(f"{name}: {lines} lines, more than {MAX_LINES}")
        if FOREIGN.search(text):
            faults.append(f"{name}: names a path of one machine")
    sys.stderr.writelines(fault + "\n" for fault in faults)
    return bool(faults)


if __name__ == "__main__":
    raise SystemExit(main())
