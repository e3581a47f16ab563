"""Runs, resumes and extends studies: from a spec, or a results folder, to the report."""

from __future__ import annotations

import itertools
import shlex
import shutil
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from analysis import results
from analysis.report import page
from analysis.results import read_provenance
from analysis.schema import dotted
from study.cluster import nodes, ray
from study.cluster.ray import Cluster
from study.errors import Halted, Interrupted, SpecError, StorageError, UsageError
from study.progress.display import Show
from study.results import CONFIRM, mirror
from study.results.confirm import looks_made
from study.results.ownership import OWNED, own_folder
from study.results.provenance import add_phase
from study.results.recovery import repair_records
from study.session import Outcome, run_session, stoppable
from study.spec import Spec, changes, check, read, recorded
from study.spec.changes import all_settings, differences, fixed_settings, resolved, with_values
from study.spec.dimensions import duration_seconds
from study.spec.model import part
from study.spec.secrets import redacted
from study.tuning import warm_start
from study.tuning.storage import create_study, delete_study
from study.usercode import bundle
from trainables import storage
from trainables.config import Reading
from trainables.storage import data_folder
from trainables.usercode.importing import CODE, UserCodeError, is_own, is_table
from trainables.workloads import data


def run(
    spec: Spec | Mapping[str, Any] | str | Path,
    out: str | Path | None = None,
    *,
    address: str | None = None,
    wait: float = 0.0,
    command: str = "study.run",
    show: Show = "auto",
) -> Outcome:
    """Run a study from its beginning to its report.

    Args:
        spec: what to search: a spec, its tables, its file, or the name of a shipped one.
        out: the results folder, new or empty, or its URI; the first free of results/NAME, results/NAME-2 ... if not
            given.
        address: of a Ray cluster, auto or host:port; this machine if not given.
        wait: seconds to wait there for nodes on which a trial fits.
        command: what the user ran, for the provenance.
        show: auto: live on a terminal and in a notebook, plain lines elsewhere; plain; json: one object a line; quiet.

    Raises:
        SpecError, StorageError, ClusterError: if the study cannot start with this spec, folder or cluster.
        DataError: if the data are unavailable.
        Halted: if it cannot continue, for want of disk space.
        Interrupted: if Ctrl-C or a signal ended it; `resume` continues it.
    """
    if not isinstance(spec, Spec):
        spec = check(spec) if isinstance(spec, Mapping) else read(spec)
    with (
        nullcontext() if out is None else mirror.mirrored(_place(out), command, _tell, new=True) as place,
        claimed_folder(spec, place, command) as folder,
    ):
        data_folder, known = download(spec), warm_start.read(spec)
        spec, study = resolved(spec), None
        try:
            if study := create_study(spec):
                mirror.set_home(study, folder)
            for note in spec.copy_code(folder):
                _tell(f"note: {note}")
            for warning in spec.workload.facts.warnings:
                _tell(f"warning: {spec.workload.data}: {warning}")
            if out is None and folder.name != spec.name:
                taken = f"because {spec.name} there already holds a study"
                _tell(f"note: the results go to {folder.parent.name}/{folder.name}, {taken}")
            warm_start.write(folder, known)
            outcome = _connect_and_run(spec, folder, data_folder, address, wait, command, show)
        finally:
            if study and not (folder / "spec.toml").exists():  # Ray did not start
                delete_study(spec)
        return _with_report(outcome)


def resume(
    folder: str | Path,
    *,
    more: int = 0,
    like: Spec | None = None,
    timeout: float | str | None = None,
    until_significant: bool = False,
    address: str | None = None,
    wait: float = 0.0,
    command: str = "study.resume",
    show: Show = "auto",
) -> Outcome:
    """Continue a study where it was, whatever ended it, to its report.

    Args:
        folder: the results folder, or its URI.
        more: trials to add to those that the study was to have.
        like: what the study there must be; any if not given. Its time-out replaces that of the study.
        timeout: a time-out that replaces that of the study: seconds, or a text such as 2h.
        until_significant: whether the confirmation adds seeds until an optimizer wins (`confirm.most_seeds`).
        address: of a Ray cluster, as for `run`.
        wait: seconds to wait for nodes, as for `run`.
        command: what the user ran, for the provenance.
        show: how progress is shown, as for `run`.

    Raises:
        SpecError, StorageError, ClusterError, DataError, Halted, Interrupted: as `run`; StorageError also if the folder
            holds no study, or another process runs it.
    """
    with mirror.mirrored(_place(folder), command, _tell) as local:
        if not (local / "spec.toml").is_file():
            what = "not a results folder, because it has no spec.toml" if local.is_dir() else "no such folder"
            raise StorageError(str(local), f"{what}; give the results folder that `study run` printed")
        local = local.absolute()
        with own_folder(local, command):
            repair_records(local, _tell)
            _tell_code(local)
            if like:
                require_same(like, local)
                _tell_ignored_changes(like, local)
            spec = recorded(local)
            _refuse_edits(spec, local)
            _require_same_table(spec, local)
            _tell_edits(local)
            if like or timeout is not None:
                spec = with_values(spec, "tuning", timeout=like.tuning.timeout if like else _duration(timeout))
            if until_significant:
                spec = changes.until_significant(spec)
            if more:
                spec = with_values(spec, "budget", trials=spec.budget.trials + more)
            return _with_report(_connect_and_run(spec, local, download(spec), address, wait, command, show))


def _duration(timeout: float | str | None) -> float | str | None:
    """A time-out as it was given; a `UsageError` if it is not a duration."""
    try:
        duration_seconds(timeout)
    except ValueError as error:
        raise UsageError(f"timeout {timeout}", str(error)) from error
    return timeout


def _connect_and_run(
    spec: Spec, folder: Path, data_folder: Path, address: str | None, wait: float, command: str, show: Show
) -> Outcome:
    began = time.monotonic()
    # Ray sets signal handlers of its own in between.
    with stoppable(), ray.connected(spec, address, wait, bundle.code_of(folder)) as cluster, stoppable():
        check_nodes(cluster, spec, folder)
        start = time.monotonic() - began
        return run_session(spec, folder, data_folder, cluster, command, show=show, start_seconds=start)


@contextmanager
def claimed_folder(spec: Spec, out: Path | None, command: str) -> Iterator[Path]:
    """Make and own the folder of a new study: `out`, or the first of results/NAME, results/NAME-2 ... that is free.

    Yields its absolute path. Of two runs that start together, one is refused `out`; without it they get two folders.
    The folder is removed if nothing but code was written into it, because Ray did not start.
    """
    folder = (_first_free(spec) if out is None else out).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_used(folder, out or folder)
    except OSError as error:
        raise StorageError(str(out), f"cannot be created: {error.strerror}; give another folder") from error
    with own_folder(folder, command):
        _refuse_used(folder, out or folder)  # by a run that has ended meanwhile
        try:
            yield folder
        finally:
            if folder.is_dir() and {file.name for file in folder.iterdir()} <= {CODE, warm_start.FILE, *OWNED}:
                shutil.rmtree(folder / CODE, ignore_errors=True)
                for name in (warm_start.FILE, *OWNED):
                    (folder / name).unlink(missing_ok=True)
                with suppress(OSError):  # a link to a folder, or other studies' results
                    folder.rmdir()
                    if out is None:
                        folder.parent.rmdir()


def _refuse_used(folder: Path, out: Path) -> None:
    """Raise a `StorageError` unless a folder is empty."""
    if names := sorted({path.name for path in folder.iterdir()} - set(OWNED)):
        what = "already holds a study" if "spec.toml" in names else f"is not empty: it holds {names[0]}"
        raise StorageError(str(out), f"{what}; give a folder that does not exist yet")


def _first_free(spec: Spec) -> Path:
    """The first of results/NAME, results/NAME-2 ... that is free, which is made."""
    for number in itertools.count(1):
        folder = Path("results") / (spec.name if number == 1 else f"{spec.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            advice = "give another folder as out"
            raise StorageError(str(folder), f"cannot be created: {error.strerror}; {advice}") from error
        return folder
    raise AssertionError("unreachable")


def check_nodes(cluster: Cluster, spec: Spec, folder: Path) -> None:
    """Raise a `ClusterError` if a node of a cluster that others started is unfit; look at those that join, too."""
    if cluster.joined:
        place, modules, code = mirror.home(folder), bundle.needed(spec.tables()), bundle.code_of(folder)
        nodes.fit_nodes(place, modules, code)
        cluster.look_over = partial(nodes.joined, place=place, modules=modules, code=code)


def require_same(spec: Spec, folder: Path) -> None:
    """Raise a `StorageError` unless the study in a results folder is that of a spec."""
    if changed := differences(fixed_settings(recorded(folder)), fixed_settings(spec)):
        message = f"holds a study with a different {', '.join(changed)}; give another folder, or the original spec"
        raise StorageError(f"--out {mirror.home(folder)}", message)


def _refuse_edits(spec: Spec, folder: Path) -> None:
    """Raise a `SpecError` if settings were edited that the trials of a study have been run with."""
    file, advice = folder / "spec.toml", "restore the old value, or run the changed spec into a new folder"
    ran, winners = _recorded_settings(folder), _recorded_settings(folder / CONFIRM)
    # A key that is not recorded is one that a later version has added.
    changed = differences(ran, {key: value for key, value in fixed_settings(spec).items() if key in ran})
    mistakes = [f"{key} = {new}: was {old} when the study ran; {advice}" for key, (old, new) in changed.items()]
    if spec.confirm and (seeds := winners.get("lanes.seeds", spec.confirm.seeds)) != spec.confirm.seeds:
        asked = f"confirm.seeds = {spec.confirm.seeds}"
        mistakes.append(f"{asked}: was {seeds} when winners were confirmed; restore the old value")
    if spec.confirm and spec.confirm.looks < (made := looks_made(folder)):
        fewest = made * spec.confirm.seeds
        mistakes.append(f"confirm.most_seeds: {made} looks were made already, so it must be at least {fewest}")
    if mistakes:
        raise SpecError(str(file), mistakes)


def _require_same_table(spec: Spec, folder: Path) -> None:
    """Raise a `StorageError` if this version reads a study's table otherwise than the one that began the study."""
    workload, code = spec.workload, bundle.code_of(folder)
    if not is_table(workload.data):
        return
    try:
        loaded = data.load(workload.data, code=str(code or ""), reading=part(workload, Reading))
        why = "other columns or examples"
    except UserCodeError as error:
        loaded, why = None, str(error)
    facts = workload.facts
    if not loaded or (loaded.in_shape, loaded.out_features, len(loaded.train)) != (
        facts.in_shape,
        facts.out_features,
        facts.train,
    ):
        advice = "resume with the version in provenance.json, or run the spec into a new folder"
        raise StorageError(str(folder), f"this version reads its table differently ({why}); {advice}")


def _recorded_settings(folder: Path) -> dict[str, Any]:
    return results.table_of(read_provenance(folder), "spec")  # earlier versions recorded a text


def _tell_edits(folder: Path) -> None:
    """Tell which settings in `spec.toml` were edited since the last session, of those that may be."""
    file, text = folder / "spec.toml", read_provenance(folder).get("spec_toml")
    if not isinstance(text, str):  # of an earlier version
        return
    old, new = (dict(dotted(tomllib.loads(each))) for each in (text, file.read_text(encoding="utf-8-sig")))
    if changed := differences(old, new):
        listed = ", ".join(
            f"{key} = {_shown(after)} (was {_shown(before)})" for key, (before, after) in changed.items()
        )
        _tell(f"note: {file} was edited: {listed}; trials that have ended stay as they are")


def _tell_ignored_changes(spec: Spec, folder: Path) -> None:
    """Tell which settings of a spec a resumed study ignores: those that may change, but only in its own spec.toml."""
    own, asked = recorded(folder), resolved(spec)
    changed = differences(all_settings(own), all_settings(asked))
    changed.pop("tuning.timeout", None)  # which the study takes over
    if not changed:
        return
    home, advice = mirror.home(folder), []
    if any(key.split(".")[0] in ("resources", "recording", "confirm", "baseline") for key in changed):
        file = storage.join(home, "spec.toml")
        advice.append(f"to change resources, recording, confirm or baseline, edit {file} and resume it")
    if (more := asked.budget.trials - own.budget.trials) > 0:
        advice.append(f"`{shlex.join(['study', 'extend', str(home)])} --trials {more}` adds trials")
    kept = ", ".join(f"{key} = {_shown(old)} (asked for: {_shown(new)})" for key, (old, new) in changed.items())
    _tell("; ".join([f"note: {home} keeps its own {kept}", *advice]))


def _shown(value: Any) -> str:
    """A value of a spec in a message: short, and without the password of a URL."""
    text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    text = redacted(text)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _tell_code(folder: Path) -> None:
    """Tell which user code a study runs, and what of it was edited since the study began."""
    if code := bundle.origin(folder, mirror.home(folder)):
        _tell(f"note: runs {code}")
    for file, what in bundle.edits(folder, storage.join(mirror.home(folder), CODE)):
        _tell(f"note: {file} {what}")


def write_report(folders: Sequence[Path | str], *, out: Path | None = None, pdf: bool = False) -> Path:
    """Write the report of studies into `out`, by default into the only one's folder or the local copy of its URI."""
    return _written(folders, out, pdf=pdf)[0]


def _written(
    folders: Sequence[Path | str], out: Path | None = None, *, pdf: bool = False, keep: bool = False
) -> tuple[Path, list[list[str]]]:
    """Write a report as `write_report`, or `keep` one that is up to date; returns its page and each study's verdict."""
    places = [str(each if isinstance(each, str) else mirror.home(each)) for each in folders]
    options = [*(["--pdf"] if pdf else []), *(["--out", str(out)] if out else [])]
    again = shlex.join(["study", "report", *options, *places])
    try:
        kept = page.kept_report(Path(folders[0])) if keep else None
        return kept or page.report(folders, out, pdf=pdf, command=again)
    except OSError as error:
        why = error.strerror or error
        message = f"the report cannot be written ({why}); the results are safe. Fix that, then `{again}`"
        raise Halted(message) from error


def _with_report(outcome: Outcome) -> Outcome:
    """Write the report if a trial has begun; raise `Interrupted` if trials are missing, for which nobody waits.

    A report that shows all that there is stays as it is.
    """
    assert isinstance(outcome.folder, Path)
    if outcome.interrupted:
        raise Interrupted(replace(outcome, folder=mirror.home(outcome.folder)))
    began, report, said = time.monotonic(), None, list[str]()
    if outcome.ended:
        report, (said,) = _written([outcome.folder], keep=True)
        add_phase(outcome.folder, "report", time.monotonic() - began)
    place = report and mirror.home(report)
    return replace(outcome, folder=mirror.home(outcome.folder), report=place, verdict=tuple(said))


def _place(place: str | Path) -> Path | str:
    try:
        return storage.place(place)
    except ValueError as error:
        raise StorageError("the results folder", str(error)) from error


def _tell(text: str) -> None:
    with suppress(BrokenPipeError):  # a reader such as `head` that has left
        print(f"study: {text}", file=sys.stderr)


def download(spec: Spec) -> Path:
    """Download a spec's data, before anything is written; returns the folder of all downloaded data."""
    folder = data_folder()
    if not is_own(spec.workload.data):
        data.load(spec.workload.data, folder)
    return folder
