"""A run's report written again, with the figures of devices in it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from compress.files import run_folder
from compress.report import Report, read, write
from compress.running.devices import keep, on_device, parsed

REPORT_FILES = (*run_folder.REPORT, "pictures/*.svg")


def report_again(folder: Path, devices: Sequence[Path] = (), beside: Sequence[Path] = ()) -> Report:
    """Write a run's report again, with the figures of these devices in it; of two of one name the later one stays.

    The run folder keeps them, and a later run that ends with the same files has them in its report too.
    The results of the run folders `beside` are drawn beside it; ConfigError for one of other images.
    Raises ArtifactError where the folder has no report or a damaged one, a file is not what bench.py writes, or its
    figures are of other files than the run's; ResourceError where the folder cannot be written.
    """
    run_folder.require_sound(folder, "report.json")
    report = read(folder)
    rows = report.rows + report.alternatives
    given = {path: parsed(path) for path in devices}
    found = {device.name: device for device in report.devices}
    for path, measured in given.items():
        device = on_device(measured, str(path), folder, rows, report.baseline)
        found[device.name] = device
    report = replace(report, devices=tuple(found.values()))
    write(report, folder, {str(each): read(each) for each in beside})
    for measured in given.values():
        keep(measured, folder)
    run_folder.seal(folder, REPORT_FILES)
    return report
