"""The command line: one function a verb. Heavy modules are imported inside, so that --help answers at once."""

import io
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from compress import __version__, interruption
from compress.errors import CompressError, ConfigError

app = typer.Typer(
    name="compress",
    invoke_without_command=True,
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
RunFolder = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run folder; default reports/<name>.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
DEBUG_HELP = "Show the traceback of an error."


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"compress {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help=DEBUG_HELP)] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """One YAML file, one command: a big image classifier becomes a small, fast, proven one."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(ConfigError.exit_code)


@app.command()
def run(
    pipeline: PipelineFile,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    out: RunFolder = None,
    device: Device = "auto",
    start_from: Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Redo from this stage on.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="The same flow on tiny data, in seconds.")] = False,
    seeds: Annotated[
        int, typer.Option("--seeds", metavar="N", help="Make the student N times; the report has mean and spread.")
    ] = 1,
    plugin: Plugins = [],  # noqa: B006
    checkpoint_every: Annotated[
        float,
        typer.Option(
            "--checkpoint-every", metavar="SECONDS", min=0, help="How often a training is kept; 0: every step."
        ),
    ] = 60.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show the result only.")] = False,
) -> None:
    """Run the whole pipeline; picks up where it stopped, inside a training too."""
    _known(device)
    with _together(device) as group:
        loaded = _read(pipeline, overrides, plugin)
        from compress import runner
        from compress.console import Screen

        folder = out or Path("reports") / (loaded.slug + ("-smoke" if smoke else ""))
        with Screen(quiet or not group.leads) as screen:
            outcome = runner.run(
                loaded, folder, device=device, start_from=start_from, smoke=smoke, seeds=seeds, plugins=plugin,
                emit=screen, command=_command(pipeline, overrides, plugin, smoke, seeds),
                checkpoint_every=checkpoint_every,
            )  # fmt: skip
        code = group.first(lambda: _shown(outcome))
    raise typer.Exit(code)


def _shown(outcome: Any) -> int:
    """Print what a run came to; gives the exit code, and raises what went wrong at the end."""
    from compress.console import show_rows
    from compress.report import wording

    show_rows(outcome.report)
    typer.echo(f"\n{outcome.report.verdict}: {wording.sentence(outcome.report)}")
    for line in wording.over_seeds(outcome.report):
        typer.echo(line)
    typer.echo(f"report: {outcome.folder / 'report.html'}")
    if outcome.failure is not None:
        raise outcome.failure
    for limit in outcome.report.budget:
        if not limit.ok:
            typer.echo(
                f"budget missed: {limit.limit} allows {limit.value:g}, measured {limit.measured:.4g}",
                err=True,
            )
    return int(outcome.exit_code)


@app.command()
def validate(
    pipelines: Annotated[list[Path], typer.Argument(metavar="PIPELINE...", help="Pipeline files.")],
    overrides: Overrides = [],  # noqa: B006
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Report every error of pipeline files at once, without training."""
    _plugins(plugin)
    from compress.pipeline import read
    from compress.rehearsal import objections

    problems: list[CompressError] = []
    for path in pipelines:
        try:
            found = list(objections(read(path, overrides)))
        except ConfigError as error:
            problems.append(error)
            continue
        if found:
            lines = "\n  ".join(str(problem) for problem in found)
            problems.append(type(found[0])(f"{path} cannot run:\n  {lines}"))
        else:
            typer.echo(f"{path}: ok")
    if problems:
        raise type(problems[0])("\n".join(map(str, problems)))


@app.command()
def show(pipeline: PipelineFile, overrides: Overrides = [], plugin: Plugins = []) -> None:  # noqa: B006
    """Show the resolved plan: stages, nets, data, parameters, MACs, estimates of time and disk."""
    loaded = _read(pipeline, overrides, plugin)
    from compress.plan import plan, render

    typer.echo(render(plan(loaded)))


@app.command()
def sensitivity(
    pipeline: PipelineFile,
    overrides: Overrides = [],  # noqa: B006
    out: RunFolder = None,
    device: Device = "auto",
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Measure what each group of layers of the baseline can lose: a table and a picture; goes on where it stopped."""
    _known(device)
    with _together(device) as group:
        loaded = _read(pipeline, overrides, plugin)
        from compress.analysing import analyse
        from compress.console import Screen

        with Screen(not group.leads) as screen:
            found = analyse(loaded, out or Path("reports") / loaded.slug, device=device, plugins=plugin, emit=screen)
    if group.leads:
        for sentence in found.sentences:
            typer.echo(sentence)
        typer.echo(f"table: {found.table}\npicture: {found.picture}")


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]) -> None:
    """Write the report again from a run folder."""
    from compress.report import read, write

    found = read(folder)
    write(found, folder)
    typer.echo(f"report: {folder / 'report.html'}")


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.html", help="The page; default compare.html here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare runs and their teachers' students: one table, one page with the Pareto front."""
    from compress.comparing import PAGE, compare_runs, show, write_page
    from compress.report.comparison_page import as_json as in_json

    found = compare_runs(folders)
    write_page(found, out or PAGE)
    if as_json:
        typer.echo(in_json(found))
    else:
        show(found)
    typer.echo(f"page: {out or PAGE}", err=as_json)


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


@app.command()
def verify(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An ONNX file, float or int8, of any program.")],
    run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="Its run folder; found where it lies in one.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", metavar="FLOAT.onnx", help="A file to agree with.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE.npz", help="`inputs` as the file is fed, and `labels`.")
    ] = None,
    target: Annotated[str | None, typer.Option("--target", help="Judge by this target's rules.")] = None,
    plugin: Plugins = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prove an ONNX file: checker, seal, target, weights, int8 kernels, agreement, every layer's noise, saturation."""
    _plugins(plugin)
    from compress.errors import ExportError
    from compress.measure.verification import render
    from compress.verifying import verify as verify_file

    found = verify_file(model, run=run, reference=reference, data=data, target=target)
    typer.echo(render(found, as_json=as_json))
    if found.failures:
        raise ExportError("\n".join(f"{model}: {check.said}" for check in found.failures))


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

    from compress import durable

    target = Path(name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    text = files("compress").joinpath("starters/starter.yaml").read_text(encoding="utf-8")
    if target.exists() or target.is_symlink():
        raise ConfigError(f"{target} is there already; choose another name, or delete it")
    durable.write(target, text.replace("NAME", target.stem, 1), instead="choose another name")
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
    interruption.listen()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no `×` should not end a run
    words = [word for word in sys.argv[1:] if word != "--debug"]
    try:
        # Typer's own handling would turn our errors into tracebacks.
        code = app(args=words, prog_name="compress", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except interruption.Stopped as stop:
        typer.echo(_stopped(stop), err=True)
        raise
    except Exception as error:  # noqa: BLE001 - the last place that can say it in one sentence
        if "--debug" in sys.argv:
            traceback.print_exc()
        message, code = _explain(error)
        typer.echo(message, err=True)
        sys.exit(code)


def _stopped(stop: interruption.Stopped) -> str:
    done = next((done for verb, done in (("run", "stages"), ("sensitivity", "rows")) if verb in sys.argv), "")
    kept = f"; finished {done} are kept" if done else ""
    kept += ", and the training as it is" if stop.saved else ""
    again = ": the same command goes on from there" if kept else ""
    return f"{'interrupted' if stop.number == signal.SIGINT else 'terminated'}{kept}{again}"


def _explain(error: BaseException) -> tuple[str, int]:
    """One message and the exit code for whatever went wrong."""
    # The classes of its usage errors are click's in some versions of typer and its own in others.
    usage = getattr(error, "format_message", None)
    if usage is not None:
        text = usage()
        end = "" if text.endswith((".", "?")) else "."
        return f"error: {text}{end} `compress --help` and `compress VERB --help` show what there is", 2
    if isinstance(error, typer.Abort) and error.__cause__ is not None:
        error = error.__cause__  # typer takes every EOFError for a user who closed the input
    from compress.console import explain

    return explain(error)


@contextmanager
def _together(device: str) -> Iterator[Any]:
    """Join the processes that torchrun started with this one, if it did; the first of them alone writes and talks.

    The others end with its exit code and without a word, unless they lost it.
    """
    from compress import durable
    from compress.distributed.failure import Lost
    from compress.distributed.joining import start
    from compress.distributed.launch import pick_device

    leads = True
    try:
        with start(pick_device(device)) as group:
            leads = group.leads
            with nullcontext() if leads else durable.reading_only():
                yield group
    except Lost:
        raise
    except SystemExit as stop:  # a signal
        if leads:
            raise
        sys.exit(stop.code)
    except Exception as error:
        if leads or "--debug" in sys.argv:
            raise
        sys.exit(_explain(error)[1])


def _known(device: str) -> None:
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {device}: should be auto, cpu or cuda")


def _plugins(files: list[Path]) -> None:
    from compress.plugins import load_plugins

    load_plugins(files)
    from compress.catalogue import check_members

    check_members()


def _read(path: Path, overrides: list[str], plugin: list[Path]) -> Any:
    _plugins(plugin)
    from compress.pipeline import read

    return read(path, overrides)


def _command(pipeline: Path, overrides: list[str], plugin: list[Path], smoke: bool, seeds: int) -> str:
    import shlex

    words = ["compress", "run", str(pipeline)]
    words += [word for override in overrides for word in ("--set", override)]
    words += [word for file in plugin for word in ("--plugin", str(file))]
    words += ["--smoke"] if smoke else []
    words += ["--seeds", str(seeds)] if seeds > 1 else []
    return shlex.join(words)
