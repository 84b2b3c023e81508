"""report.html: one file that opens offline, with plotly.js inside and nothing fetched from anywhere."""

import compress.report.charts as charts
import compress.report.on_devices as on_devices
import compress.report.page as page
import compress.report.plots as plots
import compress.report.tables as tables
import compress.report.wording as wording
from compress.report.content import Report

TEMPLATE = "report.html.j2"


def render(report: Report) -> str:
    """The text of report.html."""
    rows = (*report.rows, *report.alternatives)
    roles = {report.role(row) for row in rows}
    return page.render(
        TEMPLATE,
        plots.figures(report),
        report=report,
        wording=wording,
        tables=tables,
        on_devices=on_devices,
        # In the order in which the roles are listed, not in that of a set.
        legend=[(charts.COLOURS[role], charts.MEANING[role]) for role in charts.COLOURS if role in roles],
        curve_legend=_curve_legend(report),
    )


def _curve_legend(report: Report) -> dict[str, str]:
    keys = ("loss", "accuracy", "val_accuracy")
    return {line.stage: line.colour for key in keys for line in charts.lines(report, key)}
