"""The mutation tester: which changes it makes, which it leaves out, and that its forks notice a change."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mutmut")

from tools.mutants import mutations

MODULE = '''"""A module whose text is not mutated."""

from __future__ import annotations

LIMIT = 3


def clip(value: int | None, *, low: int = 0) -> int:
    """The value, or an error."""
    if value is None or value > LIMIT:
        raise ValueError("a message that is not mutated")
    pairs = list(zip([value], [low], strict=True))
    return max(*pairs[0])
'''


@pytest.fixture
def changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[mutations.Mutant]:
    monkeypatch.setattr(mutations, "ROOT", tmp_path)
    path = tmp_path / "module.py"
    path.write_text(MODULE)
    return mutations.mutants_of(path)


def test_operators_numbers_and_arguments_are_mutated(changes: list[mutations.Mutant]) -> None:
    after = {m.after for m in changes}
    assert {
        "LIMIT = 4",
        "if value is not None or value > LIMIT:",
        "if value is None and value > LIMIT:",
    } <= after
    assert "if value is None or value >= LIMIT:" in after
    assert len({m.key for m in changes}) == len({m.source for m in changes}) == len(changes)


def test_messages_annotations_and_strict_are_not(changes: list[mutations.Mutant]) -> None:
    for mutant in changes:
        assert 'raise ValueError("a message that is not mutated")' in mutant.source
        assert "value: int | None" in mutant.source
        assert '"""The value, or an error."""' in mutant.source
        if mutant.before.startswith("pairs") and "zip" in mutant.after:
            assert "strict=True" in mutant.after


def test_changes_outside_functions_are_told_apart(changes: list[mutations.Mutant]) -> None:
    outside = {m.after for m in changes if m.functions is None}
    assert outside == {"LIMIT = 4", "LIMIT = None", "def clip(value: int | None, *, low: int = 1) -> int:"}
    assert {m.function for m in changes if m.functions} == {"clip"}


def test_a_key_stays_when_other_code_of_the_file_changes(
    changes: list[mutations.Mutant], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module.py").write_text(MODULE.replace("LIMIT = 3", "\n\nLIMIT = 3  # a comment"))
    again = mutations.mutants_of(tmp_path / "module.py")
    functions = {m.key for m in changes if m.functions}
    assert functions == {m.key for m in again if m.functions}


TESTS = """
from onebyone.thing import FACTOR, double


def test_double():
    assert double(3) == 6
"""


def run_room(tmp_path: Path, *commands: str) -> tuple[int, dict[str, Any]]:
    """Run commands of the tool in one process on a room of one file; the last exit code and the summary."""
    package = tmp_path / "src" / "onebyone"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "thing.py").write_text(
        "FACTOR = 2\n\n\ndef double(x):\n    if x < 0:\n        return x - 7\n    return FACTOR * x\n"
    )
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_thing.py").write_text(TESTS)
    (tmp_path / "pyproject.toml").write_text(
        "[tool.pytest.ini_options]\naddopts = '--doctest-modules'\nmarkers = ['slow', 'gpu']\n"
    )
    (tmp_path / "bench" / "results").mkdir(parents=True)
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(tmp_path / "src")!r})
import tools.mutants.mutations as a, tools.mutants.running as b, tools.mutants.__main__ as c
root = Path({str(tmp_path)!r})
a.ROOT = b.ROOT = c.ROOT = root
c.STORE, c.SUMMARY, c.PRELOADED = root / ".mutants", root / "bench" / "results" / "mutants.json", ("hypothesis",)
c.ROOMS = {{"thing": c.Room(("src/onebyone/thing.py",), ("tests",))}}
test = root / "tests" / "test_negative.py"
{chr(10).join(commands)}
"""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n{script}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads((tmp_path / "bench" / "results" / "mutants.json").read_text())


def test_a_room_from_beginning_to_end(tmp_path: Path) -> None:
    """Two mutants survive: a branch that no test runs, and one that is killed only by importing the module anew."""
    code, stored = run_room(tmp_path, 'raise SystemExit(c.main(["thing"]))')
    assert code == 1
    summary = stored["rooms"]["thing"]
    survivors = {s["after"] for s in summary["survivors"]}
    assert survivors == {"if x <= 0:", "if x < 1:", "return x + 7", "return x - 8"}
    assert summary["tested"] == summary["mutants"] == summary["killed"] + len(survivors)
    assert summary["killed"] == 3  # FACTOR = 3, FACTOR = None, FACTOR / x
    assert summary["interval"] is None  # all were tested


def test_survivors_that_tests_notice_now_and_fresh_samples(tmp_path: Path) -> None:
    """A test of negative numbers is added; two changes of the comparison survive it, because 0 is not among them."""
    test = "from onebyone.thing import double\\n\\n\\ndef test_negative():\\n    assert double(-3) == -10\\n"
    code, stored = run_room(
        tmp_path,
        'c.main(["thing"])',
        f'test.write_text("{test}")',
        'c.main(["thing", "--listed"])',
        'c.main(["thing", "--sample", "4", "--seed", "2"])',
    )
    assert code == 0
    listed, fresh = stored["rooms"]["thing"], stored["fresh"]["thing"]["2"]
    assert {s["after"] for s in listed["survivors"]} == {"if x <= 0:", "if x < 1:"}
    assert (listed["killed"], listed["killed_at_first"], listed["tested"]) == (5, 3, 7)
    assert (fresh["tested"], fresh["mutants"]) == (4, 7)
    assert fresh["killed"] == fresh["killed_at_first"] == 4 - len(fresh["survivors"])
    assert fresh["score_at_first"] == fresh["score"] == fresh["killed"] / 4
    assert fresh["interval"][0] < fresh["score"] <= fresh["interval"][1]


def test_a_sample_has_the_interval_of_wilson() -> None:
    """The ends are the shares p from which the sample's is 1.96 standard deviations of p away (Wilson, 1927)."""
    from tools.mutants.__main__ import interval

    low, high = interval(90, 100, 1000)
    for p in (low, high):
        assert abs(0.9 - p) == pytest.approx(1.96 * (p * (1 - p) / 100) ** 0.5, abs=1e-4)
    assert low < 0.9 < high
    assert interval(0, 0, 10) is interval(10, 10, 10) is None


def test_reasons_are_of_lines_that_exist() -> None:
    """A reason whose line has changed is not of any mutant any more."""
    from tools.mutants.__main__ import EQUIVALENT, ROOMS

    entries = [entry for path in EQUIVALENT.glob("*.json") for entry in json.loads(path.read_text("utf-8"))]
    rooms = [set(room.files) for room in ROOMS.values()]
    for file in {entry["file"] for entry in entries}:
        lines = {line.strip() for line in (mutations.ROOT / file).read_text("utf-8").splitlines()}
        assert any(mutations.ROOT / file in files for files in rooms)
        assert [e["before"] for e in entries if e["file"] == file and e["before"] not in lines] == []
        assert all(e["reason"].endswith((".", ")")) for e in entries if e["file"] == file)


def test_the_tests_of_a_mutant_are_bounded() -> None:
    from tools.mutants.running import BUDGET, within_budget

    calls = {
        name: (seconds * BUDGET, []) for name, seconds in (("a", 0.25), ("b", 0.75), ("c", 0.01), ("d", 2))
    }
    assert within_budget(["a", "b", "c"], calls) == ["a", "b"]
    assert within_budget(["d", "a"], calls) == ["d"]
