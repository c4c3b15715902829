"""Files of a release: they agree with pyproject.toml, and what a package index shows works there."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from onebyone.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="needs the source tree")


def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text("utf-8")


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
    copied = re.findall(r"^COPY (.+) \S+$", dockerfile(), re.M)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").split() if line[0] == "!"}
    names = {name for line in copied for name in line.split()}
    assert names == allowed
    assert all((ROOT / name).exists() for name in names)


def test_the_files_of_the_image_are_in_the_repository() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", dockerfile(), re.M)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("needs a clone: the source distribution has no history")
    files = tracked.stdout.splitlines()
    for name in " ".join(copied).split():
        assert any(file == name or file.startswith(f"{name}/") for file in files), name


def test_the_image_runs_the_command_as_a_user_without_privileges() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (entry,) = re.findall(r'^ENTRYPOINT \["(\S+)"\]$', dockerfile(), re.M)
    assert entry in project["scripts"]
    (user,) = re.findall(r"^USER (\S+)$", dockerfile(), re.M)
    assert f"useradd --create-home --uid 1000 {user}" in dockerfile()
    (base,) = re.findall(r"^FROM python:(\S+)-slim$", dockerfile(), re.M)
    assert f"Programming Language :: Python :: {base}" in project["classifiers"]
    locked = (ROOT / "requirements.lock").read_text("utf-8")
    assert re.search(r"^setuptools==", locked, re.M), "needed by --no-build-isolation"
    assert re.findall(r"^.*(?: @ |://|\+cpu).*$", locked, re.M) == [], "not on a package index"


@pytest.mark.parametrize("name", ["Dockerfile", "docs/view.md"])
def test_the_commands_of_containers_exist_and_their_port_is_published(name: str) -> None:
    text = re.sub(r"\\\n#?", " ", (ROOT / name).read_text("utf-8"))
    runs = re.findall(r"^(?:# +)?docker run (.*?) onebyone (\w+)([^#\n]*)", text, re.M)
    assert runs
    for docker, verb, words in runs:
        command = get_command(app).commands[verb]  # type: ignore[attr-defined]
        options = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", words)) <= options
        if verb == "view":  # the loopback interface of a container cannot be reached from outside
            port = re.search(r"--host 0\.0\.0\.0 --port (\d+)", words)
            assert port is not None
            assert f"-p 127.0.0.1:{port[1]}:{port[1]}" in docker
            (mounted,) = re.findall(r":/data/(\S+?)\"", docker)
            assert words.split()[0] == mounted
