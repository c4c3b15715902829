"""What the command line says of dense results: class maps, and how far they agree with crops."""

from __future__ import annotations

from tests.cli.conftest import Run


def test_a_class_map_is_verified_and_a_network_without_one_refused(run: Run) -> None:
    done = run("convolutionalize", ":padded", "--window", 12, "--head", "cam", "--verify")
    assert done.code == 0, done.err
    assert "means of the class map" in done.out
    assert "are the window's numbers" in " ".join(done.out.split())
    refused = run("convolutionalize", ":plain", "--window", 16, "--head", "cam")
    assert refused.code == 3
    assert "no average pool" in refused.err
