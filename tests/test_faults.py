"""The quick part of `make faults`: runs that are killed, damaged files, in processes of their own."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from faults import PARTS


@pytest.mark.slow
@pytest.mark.parametrize("part", ["kills", "corruptions"])
def test_nothing_is_lost(part: str, tmp_path: Path) -> None:
    lines = PARTS[part](tmp_path / part, quick=True)
    assert all(line.ok is not False for line in lines), lines
    assert all(float(line.measured) > 0 for line in lines if line.ok is None)
