"""What happens when something goes wrong, measured by injection: `make faults`.

Parts, each with its lines: `kills` (runs that are killed and taken up again), `corruptions` (damaged files and
checkpoints), `disk` (a disk that is full at every write), `pipelines` (generated bad pipelines), `strangers` (malicious
files), `checks` (names that are orders, several processes, no network: files of tests) and `overhead` (what checkpoints
cost). Prints a table against the bounds, writes
benchmarks/faults.json and the table of docs/reliability.md, and exits 1 if a bound is missed.

    python benchmarks/faults.py [--only PART] [--quick]
"""

import argparse
import json
import sys
import time
from pathlib import Path

from faults_checks import check_lines
from faults_child import ROOT
from faults_corruptions import corruption_lines
from faults_kills import kill_lines
from faults_overhead import overhead_lines
from faults_strangers import disk_lines, pipeline_lines, stranger_lines
from lines import Line, conclude

RECORD = ROOT / "benchmarks" / "faults.json"
PAGE = ROOT / "docs" / "reliability.md"
WORK = ROOT / "benchmarks" / "cache" / "faults"
# What is measured by the clock comes first and alone.
PARTS = {
    "overhead": overhead_lines,
    "pipelines": pipeline_lines,
    "strangers": stranger_lines,
    "disk": disk_lines,
    "corruptions": corruption_lines,
    "kills": kill_lines,
    "checks": check_lines,
}
MARK = "<!-- measured -->"


def main() -> None:
    """Inject what is asked for, print the table, write the record."""
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("--only", choices=PARTS, help="this part alone; the other lines of the record stay")
    known.add_argument("--quick", action="store_true", help="a few of each, in a minute or two; nothing is recorded")
    chosen = known.parse_args()
    lines: list[Line] = []
    for name in [chosen.only] if chosen.only else PARTS:
        began = time.perf_counter()
        lines += PARTS[name](WORK / name, quick=chosen.quick)
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    missed = conclude(lines, None if chosen.quick else RECORD)
    if not chosen.quick:
        write_table()
    sys.exit(missed)


def write_table(record: Path = RECORD, page: Path = PAGE) -> None:
    """Put the record's figures into the page, in the place of earlier ones."""
    known = json.loads(record.read_text())
    rows = [f"| {line['what']} | {line['bound']} | {line['measured']} |" for line in known["lines"]]
    table = "\n".join(["| what | bound | measured |", "|---|---|---|", *rows])
    head, _, rest = page.read_text().partition(MARK)
    _, _, rest = rest.partition("\n## ")
    page.write_text(f"{head}{MARK}\n\n{table}\n\n## {rest}")


if __name__ == "__main__":
    main()
