"""Files of a release: they agree with pyproject.toml, and what a package index shows works there."""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from onebyone.cli.main import app
from tools import address

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


@pytest.fixture
def files_of_a_release(tmp_path: Path) -> Path:
    for name in address.FILES:
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def urls_in(root: Path) -> tuple[dict[str, str], str, str]:
    """The public addresses that each file states, read by a parser of its format."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    cited = yaml.safe_load((root / "CITATION.cff").read_text("utf-8"))
    site = yaml.load((root / "mkdocs.yml").read_text("utf-8"), yaml.BaseLoader)
    social = site["extra"].get("social", [{"link": ""}])
    return project.get("urls", {}), cited.get("repository-code", ""), social[0]["link"]


def test_one_command_writes_the_public_address_everywhere(files_of_a_release: Path) -> None:
    """A second call replaces the address, and nothing else of the files changes."""
    texts = []
    for given in ("https://forge.example/first/onebyone", "https://forge.example/someone/onebyone.git/"):
        address.write(given, files_of_a_release)
        texts.append({name: (files_of_a_release / name).read_text("utf-8") for name in address.FILES})
    urls, repository, site = urls_in(files_of_a_release)
    expected = "https://forge.example/someone/onebyone"
    assert urls == {name: expected + path for name, path in address.PATHS.items()}
    assert urls["Repository"] == repository == site
    assert texts[1] == {name: text.replace("/first/", "/someone/") for name, text in texts[0].items()}
    for name, text in texts[1].items():
        changes = difflib.ndiff((ROOT / name).read_text("utf-8").splitlines(), text.splitlines())
        assert all("https://" in line for line in changes if line.startswith("- "))


def test_the_pages_below_the_public_address_exist() -> None:
    for path in address.PATHS.values():
        if path.startswith("/blob/main/"):
            assert (ROOT / path.removeprefix("/blob/main/")).is_file()


def test_the_public_address_is_the_same_everywhere() -> None:
    urls, repository, site = urls_in(ROOT)
    assert urls.get("Repository", "") == repository == site


@pytest.mark.parametrize(
    "given",
    ["", "onebyone", "http://forge.example/a/b", "https://forge.example", "https://u:p@forge.example/a/b",
     "https://forge.example/a/b\nx: 1", 'https://forge.example/a/b"', "https://localhost/a/b"],
)  # fmt: skip
def test_what_is_no_public_address_is_refused_and_changes_nothing(
    given: str, files_of_a_release: Path
) -> None:
    before = [(files_of_a_release / name).read_bytes() for name in address.FILES]
    with pytest.raises(ValueError, match="expected https://HOST/OWNER/NAME"):
        address.write(given, files_of_a_release)
    assert [(files_of_a_release / name).read_bytes() for name in address.FILES] == before
