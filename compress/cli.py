"""The command line: one function a verb. Heavy modules are imported inside, so that --help answers at once."""

import gc
import io
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from compress import __version__, interruption
from compress.errors import CompressError, ConfigError
from compress.exiting import errors_as_json, explained, say, say_json, stopped, together
from compress.verbs import completing

app = typer.Typer(
    name="compress",
    invoke_without_command=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

PipelineFile = Annotated[
    Path, typer.Argument(metavar="PIPELINE", help="The pipeline file.", autocompletion=completing.pipelines)
]
Overrides = Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="Override one value; repeatable.")]
Plugins = Annotated[
    list[Path],
    typer.Option(
        "--plugin",
        metavar="FILE.py",
        help="Run this file: it adds your own models, data, losses, stages, importances.",
    ),
]
RunFolder = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run folder; default reports/<name>.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
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
    start_from: Annotated[
        str | None,
        typer.Option("--from", metavar="STAGE", help="Redo from this stage on.", autocompletion=completing.stages),
    ] = None,
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
    as_json: Annotated[
        bool, typer.Option("--json", help="Print events as JSON, one a line, the result or the error last.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write curves for TensorBoard into RUN/tensorboard.")
    ] = False,
    wandb: Annotated[
        str | None, typer.Option("--wandb", metavar="PROJECT", help="Log to this project of Weights & Biases.")
    ] = None,
) -> None:
    """Run the whole pipeline; picks up where it stopped, inside a training too."""
    with errors_as_json(as_json):
        _known(device)
        with together(device) as group:
            loaded = _read(pipeline, overrides, plugin)
            from compress.running import runner
            from compress.showing.watched import Wanted

            folder = out or Path("reports") / (loaded.slug + ("-smoke" if smoke else ""))
            wanted = Wanted(quiet, as_json, tensorboard, wandb) if group.leads else None
            with _watched(wanted, folder, loaded, smoke, seeds) as watchers:
                outcome = watchers.ended(runner.run(
                    loaded, folder, device=device, start_from=start_from, smoke=smoke, seeds=seeds, plugins=plugin,
                    emit=watchers, command=_command(pipeline, overrides, plugin, smoke, seeds),
                    checkpoint_every=checkpoint_every,
                ))  # fmt: skip
            code = group.first(lambda: _shown(outcome, as_json))
    raise typer.Exit(code)


@contextmanager
def _watched(wanted: Any, folder: Path, loaded: Any, smoke: bool, seeds: int) -> Iterator[Any]:
    """Whoever watches a run; where several processes train together, the first of them alone is watched."""
    from compress.showing.watched import Watchers, watched

    if wanted is None:
        yield Watchers()
        return
    pieces: tuple[Any, ...] = ()
    if sys.stderr.isatty() and not wanted.quiet and not wanted.as_json:  # only bars show the time that is left
        from compress.running.workload import pieces as work

        pieces = work(loaded, smoke=smoke, seeds=seeds)
    with watched(wanted, folder, loaded.name, loaded.model_dump(mode="json"), pieces) as watchers:
        yield watchers


def _shown(outcome: Any, as_json: bool = False) -> int:
    """Print what a run came to; gives the exit code, and raises what went wrong at the end."""
    if as_json:
        from compress.showing.json_lines import JsonLines, result

        JsonLines()(result(outcome))
        return int(outcome.exit_code)
    from compress.console import show_rows
    from compress.report import wording

    show_rows(outcome.report)
    say(f"\n{outcome.report.verdict}: {wording.judgement(outcome.report)}")
    say(wording.sentence(outcome.report))
    for line in wording.over_seeds(outcome.report):
        say(line)
    say(f"report: {outcome.folder / 'report.html'}")
    if outcome.failure is not None:
        raise outcome.failure
    for limit in outcome.report.budget:
        if not limit.ok:
            say(
                f"budget missed: {limit.limit} allows {limit.value:g}, measured {limit.measured:.4g}",
                err=True,
            )
    return int(outcome.exit_code)


@app.command()
def validate(
    pipelines: Annotated[
        list[Path],
        typer.Argument(metavar="PIPELINE...", help="Pipeline files.", autocompletion=completing.pipelines),
    ],
    overrides: Overrides = [],  # noqa: B006
    plugin: Plugins = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Report every error of pipeline files at once, without training."""
    _plugins(plugin)
    with _importing():
        from compress.pipeline import read
        from compress.running.rehearsal import objections

    problems: list[CompressError] = []
    told = []
    for i, path in enumerate(pipelines):
        if i:
            gc.collect()  # the nets of the one before; `__main__` has turned this off
        try:
            notes: list[str] = []
            found = list(objections(read(path, overrides), notes))
        except ConfigError as error:
            problems.append(error)
            each = str(error).split("\n  ")
            told.append({"pipeline": str(path), "ok": False, "problems": each[1:] or each, "notes": []})
            continue
        told.append(
            {"pipeline": str(path), "ok": not found, "problems": [str(problem) for problem in found], "notes": notes}
        )
        if found:
            lines = "\n  ".join(str(problem) for problem in found)
            problems.append(type(found[0])(f"{path} cannot run:\n  {lines}"))
        elif not as_json:
            say("\n  ".join([f"{path}: ok", *notes]))
    if as_json:
        say_json(told)
    if problems:
        raise type(problems[0])("\n".join(map(str, problems)))


@app.command()
def show(
    pipeline: PipelineFile,
    overrides: Overrides = [],  # noqa: B006
    plugin: Plugins = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Show the resolved plan: stages, nets, data, parameters, MACs, estimates of time and disk."""
    loaded = _read(pipeline, overrides, plugin)
    from compress.running.plan import plan
    from compress.verbs.plan_tree import as_json as in_json
    from compress.verbs.plan_tree import render
    from compress.yamlfile import read_yaml

    found = plan(loaded)
    if as_json:
        say(in_json(found, loaded))
    else:
        render(found, loaded, read_yaml(pipeline, overrides))


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
    with together(device) as group:
        loaded = _read(pipeline, overrides, plugin)
        from compress.showing.screen import Screen
        from compress.verbs.analysing import analyse

        with Screen(not group.leads) as screen:
            found = analyse(loaded, out or Path("reports") / loaded.slug, device=device, plugins=plugin, emit=screen)
    if group.leads:
        for sentence in found.sentences:
            say(sentence)
        say(f"table: {found.table}\npicture: {found.picture}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", autocompletion=completing.runs)],
    device: Annotated[
        list[Path],
        typer.Option("--device", metavar="FILE.json", help="Put in what models/bench.py measured there; repeatable."),
    ] = [],  # noqa: B006
    beside: Annotated[
        list[Path], typer.Option("--with", metavar="RUN", help="Draw another run's result beside it; repeatable.")
    ] = [],  # noqa: B006
) -> None:
    """Write the report again from a run folder, with figures of devices where given."""
    from compress.verbs.devices import report_again

    report_again(folder, device, beside)
    say(f"report: {folder / 'report.html'}")


@app.command()
def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders.", autocompletion=completing.runs)
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.html", help="The page; default compare.html here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs and their teachers' students: one table, one page with the Pareto front."""
    from compress.report.comparison_page import as_json as in_json
    from compress.verbs.comparing import PAGE, compare_runs, show, write_page

    found = compare_runs(folders)
    write_page(found, out or PAGE)
    if as_json:
        say(in_json(found))
    else:
        show(found)
    say(f"page: {out or PAGE}", err=as_json)


@app.command()
def benchmark(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL.onnx...", help="ONNX files.", autocompletion=completing.models)
    ],
    threads: Annotated[int, typer.Option(min=1, help="Threads of ONNX Runtime.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images a run.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which the files take turns.")] = 30,
    as_json: AsJson = False,
) -> None:
    """Compare size, MACs and latency of ONNX files, which take turns; ratios are to the first."""
    from compress.measure.comparison import compare_files, render

    figures = compare_files(models, threads=threads, batch=batch, rounds=rounds)
    say(render(figures, as_json=as_json))


@app.command()
def verify(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL.onnx", help="An ONNX file, float or int8, of any program.", autocompletion=completing.models
        ),
    ],
    run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="Its run folder; found where it lies in one.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", metavar="FLOAT.onnx", help="A file to agree with.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE.npz", help="`inputs` as the file is fed, and `labels`.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Judge by this target's rules.", autocompletion=completing.targets)
    ] = None,
    plugin: Plugins = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Prove an ONNX file: checker, seal, target, weights, int8 kernels, agreement, every layer's noise, saturation."""
    _plugins(plugin)
    from compress.errors import ExportError
    from compress.measure.verification import render
    from compress.verbs.verifying import verify as verify_file

    found = verify_file(model, run=run, reference=reference, data=data, target=target)
    say(render(found, as_json=as_json))
    if found.failures:
        raise ExportError("\n".join(f"{model}: {check.said}" for check in found.failures))


@app.command()
def predict(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL.onnx", help="A file of `compress run`.", autocompletion=completing.models)
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures, or folders of them.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes of each.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Name the likeliest classes of pictures, prepared as the file's own metadata say."""
    from compress.verbs.classify import Prediction, predict, render

    found: list[Prediction] = []
    try:
        found.extend(predict(model, images, top))
    finally:  # what can be read is shown before what cannot is named
        if found:
            say(render(model, found, as_json=as_json))


@app.command("ls")
def list_names(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[models|data|losses|stages|importances|targets|pipelines]", autocompletion=completing.kinds
        ),
    ] = None,
    plugin: Plugins = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """List what a pipeline file can name, one line each."""
    _plugins(plugin)
    from compress.verbs.catalogue import catalogue

    lines = catalogue()
    if kind is not None and kind not in lines:
        from compress.config import near

        raise ConfigError(f"ls {kind}: no such kind.{near(kind, lines)}")
    if as_json:
        words = {each: [line.partition(" ") for line in lines[each]] for each in ([kind] if kind else lines)}
        say_json({k: [{"name": name, "summary": rest.strip()} for name, _, rest in v] for k, v in words.items()})
        return
    for each in [kind] if kind else lines:
        if kind is None:
            say(f"{each}:")
        for line in lines[each]:
            say(line if kind else f"  {line}")


@app.command()
def schema(plugin: Plugins = []) -> None:  # noqa: B006
    """Print the JSON schema of a pipeline file, for editors."""
    _plugins(plugin)
    from compress.verbs.schema import as_json

    say(as_json().rstrip("\n"))


@app.command()
def init(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="The new file's name.")] = "pipeline",
    data: Annotated[
        str | None, typer.Option("--data", metavar="DIR", help="Your images: one folder a class; or `digits`, a demo.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Your device: see `ls targets`.", autocompletion=completing.targets)
    ] = None,
    limit: Annotated[
        list[str], typer.Option("--limit", metavar="KEY=VALUE", help="What it may cost: max_bytes=500kB; repeatable.")
    ] = [],  # noqa: B006
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Without published weights.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing, take what would be proposed.")] = False,
) -> None:
    """Write a pipeline to start from; at a terminal it asks for images, device and limit."""
    import shlex

    from compress.files import durable
    from compress.verbs import starting

    if data is None and starting.holds_classes(Path(name)):  # `init photos`: what is meant is the folder
        data, name = name, Path(name).resolve().name
    file = Path(name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    if file.exists() or file.is_symlink():
        raise ConfigError(f"{file} is there already; choose another name, or delete it")
    if not yes and sys.stdin.isatty() and sys.stdout.isatty():
        from compress.verbs import questions

        data = data or questions.ask_images()
        target = target or questions.ask_target()
        limit = limit or [questions.ask_limit()]
    elif yes:
        data, target = data or str(starting.folder_here() or starting.DEMO), target or starting.target_here()
    images = starting.PLACEHOLDER if data is None else starting.images_of(data)
    limits = starting.limits_of(limit)
    answers = starting.Answers(images, starting.target_of(target or "onnxruntime"), limits, not from_scratch)
    durable.write(file, starting.text(file.stem, answers), instead="choose another name")
    if data is not None and (found := starting.said(answers)):
        say(found)
    if data is None and not starting.PLACEHOLDER.is_dir():
        say(f"there is no folder {starting.PLACEHOLDER} yet: put the path of your images into `data`, or give --data")
    typed = shlex.quote(str(file))
    say(f"wrote {file}: edit it, then `compress run {typed} --smoke` tries it, `compress run {typed}` runs it")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show versions, CPU flags that decide int8 speed, GPUs, threads, and what will be slow or missing."""
    from compress.verbs.doctor import findings

    found = list(findings())
    if as_json:
        say_json([{"topic": topic, "text": text} for topic, text in found])
    else:
        say("\n".join(f"{topic:10} {text}" for topic, text in found))


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
        say(stopped(stop), err=True)
        raise
    except Exception as error:  # noqa: BLE001 - the last place that can say it in one sentence
        if "--debug" in sys.argv:
            traceback.print_exc()
        message, code = explained(error)
        say(message, err=True)
        sys.exit(code)


def _known(device: str) -> None:
    if device not in ("auto", "cpu", "cuda"):
        from compress.spelling import nearest

        near = nearest(device, ("auto", "cuda"))  # what others have in common with `cpu` are letters
        raise ConfigError(f"--device {device}: should be auto, cpu or cuda{near and '.'}{near}")


@contextmanager
def _importing() -> Iterator[None]:
    """Import without looking for garbage: there is none in modules, and the search takes a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _plugins(files: list[Path]) -> None:
    with _importing():
        from compress.plugins import load_plugins

        load_plugins(files)
        from compress.verbs.catalogue import check_members

    check_members()


def _read(path: Path, overrides: list[str], plugin: list[Path]) -> Any:
    _plugins(plugin)
    with _importing():
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
