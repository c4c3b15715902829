"""Files are written atomically, and failed writes leave no files behind."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from onebyone.atomic_files import atomic_path, require_file, require_writable, write_bytes, write_text
from onebyone.cli.main import app
from onebyone.errors import BadInput


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        assert target.read_text() == "old"
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".json")
    assert target.read_text() == "half"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyboardInterrupt(), FileNotFoundError(2, "other", "elsewhere")]
)
def test_an_interrupted_write_changes_nothing(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def interrupted() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert [(p, p.read_text()) for p in tmp_path.iterdir()] == [(target, "old")]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(BadInput, match=r"^cannot write .*a\.txt: No space left on device$"),
        atomic_path(tmp_path / "a.txt"),
    ):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_file_made_of_another_one_gives_it_no_new_readers(tmp_path: Path) -> None:
    source, made = tmp_path / "source", tmp_path / "made"
    source.touch(0o600)
    with atomic_path(made, readers_of=source) as part:
        assert stat.S_IMODE(part.stat().st_mode) == 0o600  # before anything is in it
        part.write_text("secret")
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    source.chmod(0o404)
    made.chmod(0o664)
    with atomic_path(made, readers_of=source) as part:
        part.unlink()
        part.touch(0o600)
    assert stat.S_IMODE(made.stat().st_mode) == 0o604  # the owner may replace it again


def test_permissions_and_links_stay(tmp_path: Path) -> None:
    target, link, fresh = tmp_path / "a.txt", tmp_path / "link.txt", tmp_path / "fresh.txt"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_text(link, "né")
    assert link.is_symlink()
    assert target.read_text(encoding="utf-8") == "né"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    (tmp_path / "plain").write_bytes(b"")
    write_bytes(fresh, b"\0")
    assert fresh.stat().st_mode == (tmp_path / "plain").stat().st_mode
    with atomic_path(tmp_path / "replaced") as part:
        part.unlink()
        part.touch(0o600)  # as safetensors does
    assert (tmp_path / "replaced").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/a.txt", "No such file or directory"),
        ("folder", "it is a folder"),
        ("pipe", "it is not a regular file"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is_done(
    tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for write in (require_writable, lambda path: write_text(path, "x")):
        with pytest.raises(BadInput, match=f"^cannot write .*{name}: {message}"):
            write(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "pipe"]


def test_a_protected_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("old")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, whom nothing stops
    with pytest.raises(BadInput, match="Permission denied"):
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"


def test_checks_before_long_work_leave_nothing(tmp_path: Path) -> None:
    require_writable(tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadInput, match=r"cannot read .*a\.txt: No such file"):
        require_file(tmp_path / "a.txt")
    with pytest.raises(BadInput, match="it is a folder"):
        require_file(tmp_path)


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "pipe"])
def test_a_device_or_a_pipe_is_not_read(tmp_path: Path, name: str) -> None:
    """Reading the first never ends; opening the last would wait for a writer."""
    path = tmp_path / name  # an absolute name stays as it is
    if name == "pipe":
        os.mkfifo(path)
    with pytest.raises(BadInput, match="it is a device or a pipe; expected a regular file"):
        require_file(path)


def test_a_command_does_not_replace_the_file_that_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = tmp_path / "net.onnx"
    net.write_text("a network")
    (tmp_path / "link.onnx").symlink_to(net)
    monkeypatch.chdir(tmp_path)
    for path, source in ((net, "net.onnx"), (Path("link.onnx"), str(net))):
        with pytest.raises(BadInput, match="it is the network that is read; expected another name"):
            require_writable(path, source)
        result = CliRunner().invoke(app, ["convert", source, "-o", str(path)], env={"COLUMNS": "300"})
        assert result.exit_code == 2
        assert "it is the network that is read" in result.output + result.stderr
    require_writable(net, "torchvision:resnet18")
    require_writable(tmp_path / "other.onnx", str(net))
    assert net.read_text() == "a network"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.onnx", "net.onnx"]
