"""The house rules that no off-the-shelf linter holds.

File length, no path or host of one machine in the tree, and no two classes of one name. Import circles are checked by
import-linter (`pyproject.toml`).
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

MAX_LINES = 400
FOREIGN = re.compile(r"/work/|/root/|/opt/(?:pypi|wheels)")
SOURCES = Path("src")


def main() -> int:
    """Return 1 and say why for each file that breaks a rule, else 0."""
    command = ["git", "ls-files", "*.py", "*.md", "*.toml", "*.lock", "Makefile", ".ci/run"]
    tracked = subprocess.run(command, check=True, capture_output=True, text=True)
    faults = []
    modules: dict[str, ast.Module] = {}
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
        if path.suffix == ".py" and SOURCES in path.parents:
            modules[module_name(path)] = ast.parse(text)
    faults += shared_class_names(modules)
    sys.stderr.writelines(fault + "\n" for fault in faults)
    return bool(faults)


def module_name(path: Path) -> str:
    """The dotted name of a module under `src`; a package's own name for its `__init__.py`."""
    parts = path.relative_to(SOURCES).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def shared_class_names(modules: Mapping[str, ast.Module]) -> list[str]:
    """One sentence for each class name that several modules define at their top level."""
    owners: dict[str, list[str]] = defaultdict(list)
    for module, tree in modules.items():
        for statement in tree.body:
            if isinstance(statement, ast.ClassDef):
                owners[statement.name].append(module)
    return [
        f"{', '.join(sorted(names))}: define a class of the same name, {class_name}"
        for class_name, names in sorted(owners.items())
        if len(names) > 1
    ]


if __name__ == "__main__":
    raise SystemExit(main())
