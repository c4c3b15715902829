"""Files of a release: they agree with pyproject.toml, and what a package index shows works there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="needs the source tree")


def test_the_citation_is_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f'version: "{project["version"]}"\n' in citation
    assert f'abstract: "{project["description"]}"\n' in citation
    assert f"license: {project['license']}\n" in citation


def test_the_description_for_a_package_index_has_no_relative_links_and_the_readmes_first_words() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    page = (ROOT / project["readme"]).read_text("utf-8")
    assert re.findall(r"\]\((?!https://)[^)]*\)", page) == []
    readme = (ROOT / "README.md").read_text("utf-8")
    assert " ".join(page.split()).split("```")[0] == " ".join(readme.split()).split("```")[0]


def test_the_image_copies_only_files_that_are_let_through() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text("utf-8"), re.M)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").split() if line[0] == "!"}
    names = {name for line in copied for name in line.split()}
    assert names == allowed
    assert all((ROOT / name).exists() for name in names)
