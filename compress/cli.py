"""The command line: one function a verb. Heavy modules are imported inside, so that --help answers at once."""

import errno
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import click
import typer

from compress import __version__
from compress.errors import CompressError, ConfigError, ResourceError

app = typer.Typer(
    name="compress",
    help="One YAML file, one command: a big image classifier becomes a small, fast, proven one.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

PipelineFile = Annotated[Path, typer.Argument(metavar="PIPELINE", help="The pipeline file.")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="Override one value; repeatable.")]
Plugins = Annotated[
    list[Path],
    typer.Option(
        "--plugin",
        metavar="FILE.py",
        help="Run this file: it adds your own models, data sets, losses, stages.",
    ),
]
DEBUG_HELP = "Show the traceback of an error."
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"compress {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help=DEBUG_HELP)] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Distil, prune, quantize, export and measure image classifiers."""


@app.command()
def run(
    pipeline: PipelineFile,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The run folder; default reports/<name>.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    start_from: Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Redo from this stage on.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="The same flow on tiny data, in seconds.")] = False,
    plugin: Plugins = [],  # noqa: B006
    quiet: Annotated[bool, typer.Option("--quiet", help="Show the result only.")] = False,
) -> None:
    """Run the whole pipeline; picks up where it stopped."""
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {device}: should be auto, cpu or cuda")
    loaded = _read(pipeline, overrides, plugin)
    from compress import runner
    from compress.console import Screen
    from compress.report import wording

    folder = out or Path("reports") / (loaded.slug + ("-smoke" if smoke else ""))
    with Screen(quiet) as screen:
        outcome = runner.run(
            loaded, folder, device=device, start_from=start_from, smoke=smoke, plugins=plugin, emit=screen,
            command=_command(pipeline, overrides, plugin, smoke),
        )  # fmt: skip
    _show_rows(outcome.report)
    typer.echo(f"\n{outcome.report.verdict}: {wording.sentence(outcome.report)}")
    typer.echo(f"report: {outcome.folder / 'report.html'}")
    if outcome.failure is not None:
        raise outcome.failure
    for limit in outcome.report.budget:
        if not limit.ok:
            typer.echo(
                f"budget missed: {limit.limit} allows {limit.value:g}, measured {limit.measured:.4g}",
                err=True,
            )
    raise typer.Exit(outcome.exit_code)


@app.command()
def validate(
    pipelines: Annotated[list[Path], typer.Argument(metavar="PIPELINE...", help="Pipeline files.")],
    overrides: Overrides = [],  # noqa: B006
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Report every error of pipeline files at once, without training."""
    _plugins(plugin)
    problems = []
    for path in pipelines:
        try:
            _read(path, overrides, [])
            typer.echo(f"{path}: ok")
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))


@app.command()
def show(pipeline: PipelineFile, overrides: Overrides = [], plugin: Plugins = []) -> None:  # noqa: B006
    """Show the resolved plan: stages, nets, data, parameters, MACs, estimates of time and disk."""
    loaded = _read(pipeline, overrides, plugin)
    from compress.plan import plan, render

    typer.echo(render(plan(loaded)))


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]) -> None:
    """Write the report again from a run folder."""
    from compress.report import read, write

    found = read(folder)
    write(found, folder)
    typer.echo(f"report: {folder / 'report.html'}")


@app.command()
def benchmark(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL.onnx...", help="ONNX files.")],
    threads: Annotated[int, typer.Option(min=1, help="Threads of ONNX Runtime.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images a run.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which the files take turns.")] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare size, MACs and latency of ONNX files, which take turns; ratios are to the first."""
    from compress.measure.comparison import compare_files, render

    figures = compare_files(models, threads=threads, batch=batch, rounds=rounds)
    typer.echo(render(figures, as_json=as_json))


@app.command("ls")
def list_names(
    kind: Annotated[str | None, typer.Argument(metavar="[models|data|losses|stages|pipelines]")] = None,
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """List what a pipeline file can name, one line each."""
    _plugins(plugin)
    from compress.catalogue import catalogue

    lines = catalogue()
    if kind is not None and kind not in lines:
        from compress.config import near

        raise ConfigError(f"ls {kind}: no such kind.{near(kind, lines)}")
    for each in [kind] if kind else lines:
        if kind is None:
            typer.echo(f"{each}:")
        for line in lines[each]:
            typer.echo(line if kind else f"  {line}")


@app.command()
def init(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="The new file's name.")] = "pipeline",
) -> None:
    """Write a starter pipeline to edit."""
    from importlib.resources import files

    target = Path(name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    if target.exists():
        raise ConfigError(f"{target} is there already; choose another name, or delete it")
    text = files("compress").joinpath("starters/starter.yaml").read_text().replace("NAME", target.stem, 1)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    typer.echo(
        f"wrote {target}: edit it, then `compress run {target} --smoke` tries it, `compress run {target}` runs it"
    )


@app.command()
def doctor() -> None:
    """Show versions, CPU flags that decide int8 speed, GPUs, threads, and what will be slow or missing."""
    from compress.doctor import findings

    for line in findings():
        typer.echo(line)


def main() -> NoReturn:
    """Run the command line; prints one message for an error and exits with its code."""
    signal.signal(signal.SIGTERM, _terminate)
    debug = "--debug" in sys.argv
    try:
        # click's own handling would turn Ctrl-C into exit code 1 and our errors into tracebacks.
        result = app(args=[a for a in sys.argv[1:] if a != "--debug"], standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except Exception as error:  # noqa: BLE001 - the last place that can say it in one sentence
        if debug:
            traceback.print_exc()
        message, code = _explain(error)
        typer.echo(message, err=True)
        sys.exit(code)
    except KeyboardInterrupt:
        typer.echo("interrupted; finished stages are kept, the same command goes on from them", err=True)
        sys.exit(130)


def _terminate(*_: object) -> None:
    typer.echo("terminated; finished stages are kept, the same command goes on from them", err=True)
    sys.exit(143)


def _explain(error: Exception) -> tuple[str, int]:
    """One message and the exit code for whatever went wrong."""
    if isinstance(error, click.exceptions.Exit):
        return "", error.exit_code
    if isinstance(error, click.Abort):
        return "interrupted; finished stages are kept, the same command goes on from them", 130
    if isinstance(error, click.ClickException):
        return f"error: {error.format_message()}", 2
    if isinstance(error, CompressError):
        return f"error: {error}", error.exit_code
    known = _resource(error)
    if known is not None:
        return f"error: {known}", ResourceError.exit_code
    return (
        f"this is a bug of compress: {type(error).__name__}: {error}\n"
        "--debug shows where; please report it with the pipeline file",
        1,
    )


def _resource(error: Exception) -> str | None:
    """A sentence for errors of disk, permissions and memory; None for others."""
    number, text = getattr(error, "errno", None), str(error)
    place = f" at {error.filename}" if isinstance(error, OSError) and error.filename else ""
    if number in NO_SPACE or "No space left on device" in text or "os error 28" in text:
        from compress.environment import free_bytes

        free = free_bytes(Path.cwd()) / 1e6
        return f"the disk is full{place} ({free:.0f} MB free here); free some or choose another folder with --out. Finished stages are kept"
    if number in NO_ACCESS:
        return f"no permission to write{place}; choose another folder with --out"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return "out of memory; lower training.batch_size, or the data's size. Finished stages are kept"
    return None


def _plugins(files: list[Path]) -> None:
    from compress.plugins import load_plugins

    load_plugins(files)


def _read(path: Path, overrides: list[str], plugin: list[Path]) -> Any:
    _plugins(plugin)
    from compress.pipeline import read

    return read(path, overrides)


def _command(pipeline: Path, overrides: list[str], plugin: list[Path], smoke: bool) -> str:
    import shlex

    words = ["compress", "run", str(pipeline)]
    words += [word for override in overrides for word in ("--set", override)]
    words += [word for file in plugin for word in ("--plugin", str(file))]
    return shlex.join([*words, *(["--smoke"] if smoke else [])])


def _show_rows(report: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("net", "top-1 %", "95 %", "agree %", "params", "MMAC", "kB", "ms", box=None)
    for row in (*report.rows, *report.alternatives):
        table.add_row(
            row.net, f"{row.top1_onnx:.2f}", f"{row.top1_low:.1f}–{row.top1_high:.1f}", f"{row.agreement:.2f}",
            f"{row.params:,}", f"{row.macs / 1e6:.2f}", f"{row.bytes / 1000:,.0f}", f"{row.latency_ms.p50:.3f}",
        )  # fmt: skip
    Console(width=110).print(table)
