"""What the tests inject in processes or browsers of their own: names that are orders, several processes, no network."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from faults_child import ROOT
from lines import Line, at_least, at_most

sys.path.insert(0, str(ROOT / "tests"))
from injections import ALL

TESTS = {
    "names that are orders, shown in reports, on terminals, in files": "test_strangers_text.py",
    "training in two processes: compared with one, killed, taken up again": "test_distributed_runs.py",
    "verbs with the network blocked and traps laid out": "test_offline.py",
}


def check_lines(work: Path, *, quick: bool) -> list[Line]:
    """One line for each file of tests, none of which may fail."""
    work.mkdir(parents=True, exist_ok=True)
    return [
        at_least("script, terminal, path and formula injections", len(ALL), 200, "{:.0f}"),
        *(line for what, name in TESTS.items() if not quick for line in of_tests(work, what, name)),
    ]


def of_tests(work: Path, what: str, name: str) -> Iterator[Line]:
    """How many checks a file of tests makes, and how many fail."""
    results = work / f"{name}.xml"
    command = [sys.executable, "-m", "pytest", "-n0", "-q", f"--junitxml={results}", str(ROOT / "tests" / name)]
    subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL)
    suites = [*ET.parse(results).getroot().iter("testsuite")]  # noqa: S314  (a file that pytest wrote just now)
    made, skipped, failed = (sum(int(each.get(key, 0)) for each in suites) for key in ("tests", "skipped", "failures"))
    failed += sum(int(each.get("errors", 0)) for each in suites)
    yield at_most(f"{what}: failed of {made - skipped} checks", failed, 0, "{:.0f}")
