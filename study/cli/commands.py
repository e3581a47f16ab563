"""The commands of `study`.

Each command reads its spec first and imports what takes time afterwards, so that `--help` and mistakes answer at once.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from study.cli.options import (
    FOLDER,
    PLACE,
    SIGNIFICANT,
    SPEC,
    TIMEOUT,
    Group,
    Place,
    ended_by_second_interrupt,
    running,
    shipped,
    sized,
)
from study.cluster import Kind
from study.errors import Interrupted, UsageError
from trainables import storage

if TYPE_CHECKING:
    from collections.abc import Callable

    from study.progress.display import Show
    from study.results.export import Format
    from study.session import Outcome
    from study.spec import Spec


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="optimizer-study")
@click.option("--debug", is_flag=True, help="Show the full traceback of an error in Ray.")
def main(debug: bool) -> None:
    """Compare optimizers, each at its own tuned learning rate, with intervals over seeds."""


@main.command()
@click.argument("file", type=click.Path(path_type=Path), default="study.toml")
@click.option(
    "--data",
    help="cubic, linear, digits, mnist, fashion-mnist, kmnist, cifar10, quadratic; or your own: wine.csv, images/, "
    "mine:data for the function data in mine.py.",
)
@click.option("--label", metavar="COLUMN", help="Column to predict, of a .csv, .tsv or .parquet file.")
@click.option(
    "--task", type=click.Choice(["classification", "regression"]), help="Needed if the labels could be either."
)
@click.option(
    "--model",
    help="cnn or mlp for images, mlp or linear for vectors, quadratic for the data of that name; "
    "deepobs-logreg, deepobs-mlp, deepobs-2c2d, deepobs-3c3d; or your own: mine:Net.",
)
@click.option("--optimizers", metavar="NAMES", help="Optimizers, comma separated; sgd,momentum,adam if not given.")
@click.option("--trials", type=click.IntRange(1), help="Cells to try; 24 if not given.")
@click.option("--epochs", type=click.IntRange(1), help="Epochs per lane; 5 if not given.")
@click.option("--seeds", type=click.IntRange(1), help="Seeds per learning rate; 3 if not given.")
@click.option("--name", help="Name of the study; the name of FILE if not given.")
@click.option("--yes", is_flag=True, help="Ask nothing and use defaults.")
def init(file: Path, yes: bool, **given: str | int | None) -> None:
    """Write a commented spec to FILE, by default study.toml.

    In a terminal it asks for what is not given; otherwise it uses defaults. It never overwrites a file.
    """
    from study.spec.init import make, on_terminal

    answers = {question: answer for question, answer in given.items() if answer is not None}
    make(file, answers, ask=not yes and on_terminal())
    click.echo(f"{file} is a valid spec; edit it as you like, then run:")
    for command in ("check", "run"):
        click.echo(f"  {shlex.join(['study', command, str(file)])}")


@main.command()
@sized
@click.option("--out", type=PLACE, help="Results folder, or s3://BUCKET/NAME, gs:// ...; results/NAME if not given.")
@click.option("--resume", "again", is_flag=True, help="Resume the study in --out if there is one.")
@running
def run(spec: Spec, out: Path | str | None, again: bool, **how: Any) -> None:
    """Run a study and write its report.

    SPEC is a TOML file or the name of a shipped spec.
    """
    if again and out is None:
        raise click.UsageError("--resume needs --out, the folder of the study")
    from study import api
    from study.results import mirror

    if again and mirror.has_study(str(out)):
        significant = bool(spec.confirm and spec.confirm.most_seeds)
        _go(api.resume, out, like=spec, until_significant=significant, **how)
    else:
        _go(api.run, spec, out, **how)


@main.command()
@click.argument("folder", type=PLACE)
@TIMEOUT
@SIGNIFICANT
@running
def resume(folder: Path | str, **how: Any) -> None:
    """Resume an interrupted study.

    FOLDER is the results folder of the study, or its URI.
    """
    from study import api

    _go(api.resume, folder, **how)


@main.command()
@click.argument("folder", type=PLACE)
@click.option("--trials", type=click.IntRange(1), required=True, help="Trials to add.")
@TIMEOUT
@running
def extend(folder: Path | str, trials: int, **how: Any) -> None:
    """Add trials to a study.

    FOLDER is the results folder of the study, or its URI.
    """
    from study import api

    _go(api.resume, folder, more=trials, **how)


@main.command()
@sized
@click.option("--address", required=True, help="The cluster's job server, http://HEAD:8265.")
@click.option("--out", type=Place(), required=True, help="Results folder that all nodes share, or URI.")
@click.option("--to", type=FOLDER, help="Local copy of the results; results/NAME if not given.")
@click.option("--wait", default=0.0, help="Seconds to wait for a node that has room for a trial.")
def submit(spec: Spec, address: str, out: str, to: Path | None, wait: float) -> None:
    """Run a study on a cluster as a job, and fetch its results.

    A study that is already in --out is resumed.
    """
    from study.cluster import submit as jobs

    to = to or Path("results") / spec.name
    ended = jobs.submit(spec, address, out, wait=wait, to=to, say=click.echo)
    if storage.is_uri(out):
        click.echo(f"results: {out}; `study report {shlex.quote(out)}` reads them there")
    elif (to / "spec.toml").is_file():
        click.echo(f"results: {_shown(to)}")
    raise SystemExit(ended)


@main.command()
@click.argument("kind", type=click.Choice(get_args(Kind)))
@click.argument("spec", type=SPEC)
@click.option("--nodes", type=click.IntRange(1), default=2, show_default=True, help="Nodes that run trials.")
@click.option("--cpus-per-node", type=click.IntRange(1), help="CPUs of each node; from the spec if not given.")
@click.option("--gpus-per-node", type=click.IntRange(0), help="GPUs of each node; from the spec if not given.")
@click.option(
    "--out",
    type=Place(),
    help="Results folder that all nodes share, or a URI; /results/NAME, or results/NAME for slurm.",
)
@click.option("--image", help="Container image with this project (kuberay), or machine image (ray-up).")
@click.option("--time", help="Time limit of the job, HH:MM:SS; a day if not given. Not for ray-up.")
def manifest(kind: Kind, spec: str, **options: Any) -> None:
    """Print a Slurm script, RayJob or cluster file for a study.

    Each runs `study run`, and resumes a study that is already in --out.
    """
    from study.cluster.manifest import render
    from study.spec import read

    click.echo(render(kind, read(spec), source=spec, **options), nl=False)


@main.command()
@click.argument("folder", type=FOLDER)
@click.option("--port", default=8080, show_default=True, help="Port on this machine.")
def dashboard(folder: Path, port: int) -> None:
    """Show a study in optuna-dashboard, also while it runs."""
    from study.tuning.dashboard import serve

    serve(folder, port=port)


@main.command()
@sized
@click.option("--address", help="Also check the nodes of this Ray cluster (auto or host:port).")
@click.option(
    "--out",
    type=PLACE,
    default=Path("results"),
    show_default=True,
    help="Results folder or URI that the nodes of --address must reach.",
)
def check(spec: Spec, address: str | None, out: Path | str) -> None:
    """Validate a spec and print its cells, lanes, memory and time."""
    from study import plan
    from study.cluster import nodes as preflight
    from study.cluster import packing, ray
    from study.usercode import bundle

    nodes = []
    with ExitStack() as stack:
        if address:  # first, because measuring takes longer
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            spec.copy_code(scratch)
            code = bundle.code_of(scratch)
            stack.enter_context(ray.connected(spec, address, bundle=code))
            nodes = preflight.fit_nodes(out, bundle.needed(spec.tables()), code)
            spec = packing.resolved(spec)
        probes = plan.probed(spec)
        click.echo(plan.describe(spec, probes))
        proof, equal = plan.proved(spec)
        if proof:
            click.echo(proof)
        if not equal:
            raise SystemExit(1)
        if address:
            taken = spec.resources
            on_cpus = [p.memory_bytes for p in probes if not taken.gpus or (taken.cpu_nodes and p.small)]
            click.echo(preflight.describe(taken, nodes, max(on_cpus, default=0)))


@main.command(name="list")
def list_specs() -> None:
    """List the shipped specs."""
    for name, about in {**shipped("*.toml"), **shipped("deepobs/*.toml")}.items():
        click.echo(f"{name:<20}  {about}")


@main.command()
@click.argument("folder", type=PLACE)
def status(folder: Path | str) -> None:
    """Show the progress of a study: outcomes, best cell, cost."""
    from study.progress import status as watch

    click.echo(watch.status(folder))


@main.command()
@click.argument("folder", type=PLACE)
@click.option(
    "--optimizer", default="", metavar="NAME", help="Print this optimizer's best setting; the best of all if not given."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def best(folder: Path | str, optimizer: str, as_json: bool) -> None:
    """Print the best setting, its score, and code that trains it."""
    from study.results.export import Setting

    setting = Setting.of(folder, optimizer)
    facts, lines = setting.facts, setting.recipe()
    click.echo(json.dumps(facts | {"code": lines}) if as_json else f"# {facts['text']}\n\n{lines}")


@main.command()
@click.argument("folder", type=PLACE)
@click.option("--to", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["pt", "pt2", "onnx"]),
    help="File format; taken from the name of --to if not given.",
)
@click.option(
    "--optimizer", default="", metavar="NAME", help="Write this optimizer's best network; the best of all if not given."
)
def export(folder: Path | str, to: Path, kind: Format | None, optimizer: str) -> None:
    """Write the best trained network, and a model card.

    `study.model` reads pt. Without this project, torch.export.load reads pt2, and other tools read onnx.
    """
    from study.results.export import export as write

    network, card = write(folder, to, kind, optimizer)
    click.echo(f"wrote {network}\nwrote {card}, which says how to load the network")


@main.command()
@click.argument("folders", type=PLACE, nargs=-1, required=True, metavar="FOLDER...")
@click.option("--out", type=FOLDER, help="Where to write; needed for several studies. By default FOLDER/report.")
@click.option("--pdf", is_flag=True, help="Also write every figure as PDF.")
def report(folders: tuple[Path | str, ...], out: Path | None, pdf: bool) -> None:
    """Write the report of one or more studies.

    FOLDERs are results folders or URIs.
    """
    from study import api
    from study.results import mirror
    from study.tuning import importance

    for folder in folders:
        if isinstance(folder, Path):
            importance.refresh(folder, partial(click.echo, err=True))
    page = api.write_report(folders, out=out, pdf=pdf)
    click.echo(f"report:  {_shown(page)}")
    if isinstance(first := folders[0], str) and not out:
        try:
            mirror.send(page.parent, storage.join(first, page.parent.name))
            click.echo(f"sent to: {storage.join(first, page.parent.name, page.name)}")
        except OSError as error:
            click.echo(f"study: {first}: the report could not be sent there ({error})", err=True)


@main.command()
@click.argument("folder", type=PLACE)
@click.option(
    "--style", "width", default="icml", show_default=True, help="icml, neurips, ieee, beamer, or a width: 85mm."
)
@click.option("--out", type=FOLDER, help="Where to write; FOLDER/paper if not given.")
def figures(folder: Path | str, width: str, out: Path | None) -> None:
    """Write figures and tables for a paper: PDF, SVG, TeX, CSV."""
    import analysis

    try:
        files = analysis.write_figures(folder, width, out)
    except ValueError as error:
        raise UsageError("--style", str(error)) from error
    click.echo(f"wrote {len(files)} files into {_shown(files[0].parents[1])}")


@main.command()
@click.argument("folder", type=PLACE)
@click.argument("name", type=click.Choice(["trials", "lanes", "curves"]))
@click.option("--csv", "as_csv", is_flag=True, help="Print all rows as CSV; otherwise the first and last ones.")
def table(folder: Path | str, name: str, as_csv: bool) -> None:
    """Print a table of a study, with flat columns."""
    import analysis

    rows = analysis.flat(analysis.load(folder), name)
    click.echo(rows.to_csv(index=False) if as_csv else rows.to_string(max_rows=20, index=False), nl=not as_csv)


@main.command()
@click.option("--seeds", type=click.IntRange(1), help="Seeds of each experiment, instead of its default.")
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="Run this experiment; repeat the option for several. All if not given.",
)
@click.option("--epochs", type=click.IntRange(2), help="Limit of epochs, for a quick try; its numbers prove nothing.")
@click.option("--out", type=FOLDER, default=Path("results/reproduction"), show_default=True, help="Results folder.")
@click.option("--quiet", "show", flag_value="quiet", help="Show no progress.")
@click.option("--plain", "show", flag_value="plain", help="Show plain lines, also in a terminal.")
def reproduce(seeds: int | None, only: tuple[str, ...], epochs: int | None, out: Path, show: Show | None) -> None:
    """Repeat the source report's experiments and compare numbers.

    Experiments are linear, cubic-linear, mlp, regimes, mnist and layers. Finished ones are not run again.
    """
    from study.verify import reproduce as reproduction

    if unknown := [name for name in only if name not in reproduction.EXPERIMENTS]:
        valid = ", ".join(reproduction.EXPERIMENTS)
        raise UsageError(f"--only {unknown[0]}", f"no such experiment; valid: {valid}")
    say = partial(click.echo, err=True)
    ended = reproduction.run(
        out, only=only, seeds=seeds, epochs=epochs, command=_command(), show=show or "auto", say=say
    )
    if ended.page:
        click.echo(f"page: {_shown(ended.page)}")
    if ended.interrupted:
        click.echo(f"interrupted in {ended.interrupted}; the same command continues it", err=True)
        raise SystemExit(130)


@main.command()
@click.option(
    "--only",
    default="",
    help="Measure only figure, study, search, trials, size, or networks with this text in the name. "
    "By default all but size.",
)
@click.option("--device", default="cpu", help="Device that the engines are measured on: cpu or cuda.")
@click.option("--out", type=FOLDER, help="JSON file for the measurements; none if not given.")
def bench(only: str, device: str, out: Path | None) -> None:
    """Benchmark lanes and whole searches on this machine."""
    from rich.console import Console

    from study.verify import bench as measurements

    measured = measurements.run(only, device)
    measurements.show(measured, Console())
    if out:
        measurements.write(measured, out)


def _go(start: Callable[..., Outcome], *what: Any, show: Show | None, **options: Any) -> None:
    """Run or resume a study, print where its results are, and exit with the right code."""
    try:
        with ended_by_second_interrupt():
            outcome = start(*what, command=_command(), show=show or "auto", **options)
    except Interrupted as stop:
        outcome = stop.outcome
    folder = _shown(outcome.folder)
    report = _shown(outcome.report) if outcome.report else None
    if show == "json":
        click.echo(json.dumps({"event": "written", "results": folder, "report": report, "verdict": outcome.verdict}))
    if outcome.interrupted:
        what_next = (
            f"interrupted: {outcome.ended} of {outcome.planned} trials ended; `study resume {folder}` continues it, "
            f"`study report {folder}` shows what there is"
        )
        click.echo(what_next, err=True)
    if show != "json":
        for line in outcome.verdict:
            click.echo(line)
        if outcome.scored and not outcome.interrupted:
            follow = "best {0}", "export {0} --to model.pt", "extend {0} --trials 4"
            click.echo(f"next:    {', '.join(f'`study {each.format(folder)}`' for each in follow)}")
        click.echo(f"results: {folder}")
        if report:
            click.echo(f"report:  {report}")
    if outcome.interrupted:
        raise SystemExit(130)
    if not outcome.scored:
        click.echo(f"no trial has a value; `study status {folder}` says how they ended", err=True)
        raise SystemExit(1)


def _command() -> str:
    return shlex.join(["study", *sys.argv[1:]])


def _shown(place: Path | str) -> str:
    from study.results import mirror

    return mirror.typed(place)
