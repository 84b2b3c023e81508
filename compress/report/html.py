"""report.html: one file that opens offline, with plotly.js inside and nothing fetched from anywhere."""

import compress.report.bars as bars
import compress.report.charts as charts
import compress.report.findings as findings
import compress.report.headlines as headlines
import compress.report.on_devices as on_devices
import compress.report.page as page
import compress.report.plots as plots
import compress.report.predictions as predictions
import compress.report.references as references
import compress.report.tables as tables
import compress.report.timing as timing
import compress.report.waterfall as waterfall
import compress.report.wording as wording
from compress.report.content import Report

TEMPLATE = "report.html.j2"


def render(report: Report, others: charts.Others = ()) -> str:
    """The text of report.html; `others` are runs of the same data whose results are drawn beside."""
    shown = {point.role for point in charts.accuracy_size(report, others).points}
    return page.render(
        TEMPLATE,
        plots.figures(report, others),
        report=report,
        wording=wording,
        tables=tables,
        on_devices=on_devices,
        findings=findings,
        headlines=headlines,
        shown_classes=len(bars.shown_classes(report.changes)) if report.changes else 0,
        predictions=predictions,
        references=references,
        timing=timing,
        waterfall=waterfall,
        # In the order in which the roles are listed, not in that of a set.
        legend=[(charts.COLOURS[role], charts.MEANING[role]) for role in charts.COLOURS if role in shown],
        curve_legend=_curve_legend(report),
    )


def _curve_legend(report: Report) -> dict[str, str]:
    keys = ("loss", "accuracy", "val_accuracy")
    return {line.stage: line.colour for key in keys for line in charts.lines(report, key)}
