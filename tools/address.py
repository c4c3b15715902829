"""Write the public address of the repository into the files of a release that show it.

    python -m tools.address https://forge.example/owner/onebyone

pyproject.toml gets `[project.urls]`, which a package index shows beside the description; CITATION.cff gets
`repository-code`; mkdocs.yml gets a link below every page. An earlier address is replaced. The files have none until
the repository is public: an address that leads nowhere is worse than none.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATHS = {
    "Repository": "",
    "Documentation": "/blob/main/docs/index.md",
    "Changelog": "/blob/main/CHANGELOG.md",
    "Issues": "/issues",
}
"""The entries of `[project.urls]`, and where they are below the address, as on GitHub."""


def checked(text: str) -> str:
    """The address without a slash or `.git` at its end; `ValueError` if it cannot be that of a public repository."""
    address = text.rstrip("/").removesuffix(".git")
    if not re.fullmatch(r"https://([\w-]+\.)+[\w-]+(/[\w.~-]+){2,}", address, re.ASCII):
        raise ValueError(f"address={text!r}: expected https://HOST/OWNER/NAME")
    return address


def project_urls(text: str, address: str) -> str:
    """pyproject.toml with `[project.urls]` in front of `[project.scripts]`."""
    text = re.sub(r"^\[project\.urls\]\n(?:.+\n)*\n", "", text, flags=re.M)
    lines = "".join(f'{name} = "{address}{path}"\n' for name, path in PATHS.items())
    return inserted(text, "[project.scripts]\n", f"[project.urls]\n{lines}\n")


def citation(text: str, address: str) -> str:
    """CITATION.cff with `repository-code` in front of its keywords."""
    text = re.sub(r"^repository-code: .*\n", "", text, flags=re.M)
    return inserted(text, "keywords:\n", f'repository-code: "{address}"\n')


def site(text: str, address: str) -> str:
    """mkdocs.yml with a link below every page."""
    # not `repo_url`, for which the browsers of readers ask the host how many stars there are
    text = re.sub(r"^  social:\n(?:    .+\n)*", "", text, flags=re.M)
    link = (
        f"  social:\n    - icon: fontawesome/brands/git-alt\n      name: Repository\n      link: {address}\n"
    )
    return inserted(text, "  generator: false\n", link)


FILES: dict[str, Callable[[str, str], str]] = {
    "pyproject.toml": project_urls,
    "CITATION.cff": citation,
    "mkdocs.yml": site,
}


def inserted(text: str, before: str, lines: str) -> str:
    """`text` with `lines` in front of the only line that begins with `before`."""
    head, found, tail = text.partition(f"\n{before}")
    if not found or f"\n{before}" in tail:
        raise ValueError(f"expected one line that begins with {before.strip()!r}")
    return f"{head}\n{lines}{before}{tail}"


def write(address: str, root: Path = ROOT) -> None:
    """Write the address into the files of `root`, all of them or none."""
    address = checked(address)
    texts = {root / name: change((root / name).read_text("utf-8"), address) for name, change in FILES.items()}
    for path, text in texts.items():
        path.write_text(text, "utf-8")


def main(arguments: Sequence[str]) -> int:
    """Write the address that is the only argument; 2 if it is not one."""
    try:
        (address,) = arguments or [""]
        write(address)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
