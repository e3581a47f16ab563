"""Runs a study: spec -> Optuna and Ray Tune -> results folder; resumes, extends and confirms it."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.cluster import ray
from study.cluster.ray import Cluster
from study.errors import Halted, Interrupted, SpecError, StorageError, UsageError
from study.results import mirror
from study.spec import Spec, check, read
from study.usercode import bundle
from trainables import data
from trainables import storage as files
from trainables.usercode.importing import CODE, is_foreign

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage
    from ray.tune.experiment import Trial

    from study.confirm import Winner
    from study.progress.display import Show
    from study.progress.trackers import Listener


# Optuna's tqdm and Ray ask for ipywidgets in a notebook; our progress does without.
warnings.filterwarnings("ignore", "IProgress not found")
logging.getLogger("ray.widgets.util").setLevel(logging.ERROR)

# Times that trials are tried again which lost their worker, in a row in which none ended.
ROUNDS = 3


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        folder: the results folder, or its URI.
        ended: trials that ended, in whatever way.
        planned: trials that the spec asks for, the confirmation's included.
        scored: trials with a value.
        report: the page that tells of it; none if no trial has begun.
    """

    folder: Path | str
    ended: int
    planned: int
    scored: int
    report: Path | str | None = None

    @property
    def interrupted(self) -> bool:
        """Whether trials are missing."""
        return self.ended < self.planned


def planned_trials(spec: Spec) -> int:
    """Trials that a run makes: the budget's, but no more than a grid has cells."""
    if spec.tuning.sampler != "grid":
        return spec.budget.trials
    optimizers = spec.search.optimizers()
    cells = max(map(spec.cells_of, optimizers)) * len(optimizers) if spec.tuning.fair else spec.cells()
    return int(min(spec.budget.trials, cells))


def claim_folder(spec: Spec, out: Path | None) -> Path:
    """Make the folder where a run writes: `out`, or the first of results/NAME, results/NAME-2 ... that is free.

    Making it is what claims it: two runs that start together get two folders.

    Raises:
        StorageError: if `out` has something in it already, or cannot be made.
    """
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            held = sorted(path.name for path in out.iterdir())
        except OSError as error:
            raise StorageError(str(out), [f"cannot be made: {error.strerror}; give another folder"]) from error
        if held:
            what = "already holds a study" if "spec.toml" in held else f"is not empty, it holds {held[0]}"
            raise StorageError(str(out), [f"{what}; give a folder that does not exist yet"])
        return out
    for number in itertools.count(1):
        folder = Path("results") / (spec.name if number == 1 else f"{spec.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise StorageError(
                str(folder), [f"cannot be made: {error.strerror}; give another folder as out"]
            ) from error
        return folder
    raise AssertionError("unreachable")


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
        DataError: if the data cannot be had.
        Halted: if it cannot go on, for want of disk space.
        Interrupted: if Ctrl-C or a signal ended it; `resume` goes on.
    """
    if not isinstance(spec, Spec):
        spec = check(spec) if isinstance(spec, Mapping) else read(spec)
    place = None if out is None else _place(out)
    if place is None:
        return _run(spec, None, address, wait, command, show)
    with mirror.mirrored(place, command, _tell, new=True) as folder:
        return _run(spec, folder, address, wait, command, show)


def _run(spec: Spec, out: Path | None, address: str | None, wait: float, command: str, show: Show) -> Outcome:
    """As `run`, into a folder of this machine."""
    data_folder = _data_folder(spec)
    folder = claim_folder(spec, out).absolute()
    spec = _with_absolute_storage(with_trials(spec, planned_trials(spec)))
    claimed = False
    try:
        claim_storage(spec, folder)
        claimed = True
        # Ray sets handlers of its own in between.
        for note in spec.bring(folder):
            _tell(f"note: {note}")
        with _stoppable(), ray.connected(spec, address, wait, bundle.code_of(folder)) as on, _stoppable():
            _look_over(on, spec, folder)
            outcome = session(spec, folder, data_folder, on, command, show=show)
    finally:
        # No trial's result was written if Ray did not start.
        if folder.is_dir() and {file.name for file in folder.iterdir()} <= {CODE}:
            shutil.rmtree(folder)
            if claimed:
                release_storage(spec)
    return _with_report(outcome)


def resume(
    folder: str | Path,
    *,
    more: int = 0,
    like: Spec | None = None,
    address: str | None = None,
    wait: float = 0.0,
    command: str = "study.resume",
    show: Show = "auto",
) -> Outcome:
    """Go on with a study where it was, whatever ended it, to its report.

    Args:
        folder: the results folder, or its URI.
        more: trials to add to those that the study was to have.
        like: what the study there must be; any if not given.
        address: as for `run`.
        wait: likewise.
        command: likewise.
        show: likewise.

    Raises:
        SpecError, StorageError, ClusterError, DataError, Halted, Interrupted: as `run`; StorageError also if the folder
            holds no study, or another process runs it.
    """
    with mirror.mirrored(_place(folder), command, _tell) as here:
        if like:
            same(like, here)
            _tell_what_stays(like, here)
        return _resume(here, more, address, wait, command, show)


def _resume(folder: Path, more: int, address: str | None, wait: float, command: str, show: Show) -> Outcome:
    """As `resume`, in a folder of this machine."""
    from study.confirm import FOLDER
    from study.results.ownership import held
    from study.results.provenance import read_provenance
    from study.spec.compare import fixed_settings

    file = folder / "spec.toml"
    if not file.is_file():
        what = "not a results folder, it has no spec.toml" if folder.is_dir() else "no such folder"
        raise StorageError(str(folder), [f"{what}; give the results folder that `study run` printed"])
    spec, folder = read(file), folder.absolute()
    with held(folder, command):
        pass  # refused at once if another process runs it, and not after Ray has started
    # A key that the study was begun without is one that a later version has added.
    asked, advice = fixed_settings(spec), "put it back, or run the changed spec into a folder of its own"
    ran = read_provenance(folder).get("spec")
    ran = ran if isinstance(ran, dict) else {}  # earlier versions recorded something else
    if changed := [key for key, was in ran.items() if asked.get(key) != was]:
        told = [f"{key} = {asked.get(key)}: was {ran[key]} when the study ran; {advice}" for key in changed]
        raise SpecError(str(file), told)
    confirmed = read_provenance(folder / FOLDER).get("spec") if spec.confirm else None
    seeds = confirmed.get("lanes.seeds") if isinstance(confirmed, dict) else None
    if spec.confirm and seeds not in (None, spec.confirm.seeds):
        told = [f"confirm.seeds = {spec.confirm.seeds}: was {seeds} when winners were confirmed; put it back"]
        raise SpecError(str(file), told)
    if more:
        spec = with_trials(spec, spec.budget.trials + more)
        if spec.tuning.fair and (rest := more % len(spec.search.optimizers())):
            count = len(spec.search.optimizers())
            raise UsageError(
                f"--trials {more}", [f"tuning.fair shares them among {count}; valid: {more - rest + count}"]
            )
    for file in bundle.edited_elsewhere(folder):
        _tell(f"note: {file} is no part of the copy and has been edited since; trials run it as it is now")
    if edited := bundle.edited(folder):
        which, have = ", ".join(map(str, edited)), "have" if edited[1:] else "has"
        begun = files.join(mirror.home(folder), CODE)
        _tell(f"note: {which} {have} been edited since; the study goes on with the code it began with, in {begun}")
    data_folder = _data_folder(spec)
    with _stoppable(), ray.connected(spec, address, wait, bundle.code_of(folder)) as on, _stoppable():
        _look_over(on, spec, folder)
        outcome = session(spec, folder, data_folder, on, command, show=show)
    return _with_report(outcome)


def write_report(folders: Sequence[Path | str]) -> Path:
    """Write the report of studies into the folder of the first, or into what was fetched of it.

    Raises:
        Halted: if it cannot be written.
    """
    from analysis import report

    again = shlex.join(
        ["study", "report", *(str(each if isinstance(each, str) else mirror.home(each)) for each in folders)]
    )
    try:
        return report.write_report(folders, command=again)
    except OSError as error:
        why = error.strerror or error
        told = f"the report cannot be written ({why}); the results are safe. Mend that, then `{again}`"
        raise Halted(told) from error


def _with_report(outcome: Outcome) -> Outcome:
    """Write the report of a study, whatever ended it, if a trial has begun; then tell the caller if it is cut off."""
    from analysis import results

    assert isinstance(outcome.folder, Path)
    report = None if results.load(outcome.folder).trials.empty else write_report([outcome.folder])
    # Where everybody finds them, should the folder be the spool of a URI.
    outcome = replace(outcome, folder=mirror.home(outcome.folder), report=report and mirror.home(report))
    if outcome.interrupted:
        raise Interrupted(outcome)
    return outcome


def _place(place: str | Path) -> Path | str:
    """As `files.place`, whose errors become a `StorageError`."""
    try:
        return files.place(place)
    except ValueError as error:
        raise StorageError("the results folder", [str(error)]) from error


def _tell(text: str) -> None:
    print(f"study: {text}", file=sys.stderr)


@contextmanager
def one_ray() -> Iterator[Callable[[Spec], Cluster]]:
    """A Ray of this machine for some calls of `run_all`, started when first asked for: it takes seconds."""
    with ExitStack() as stack:
        found: list[Cluster] = []

        def on(spec: Spec) -> Cluster:
            if not found:
                stack.enter_context(_stoppable())
                found.append(stack.enter_context(ray.connected(spec, None)))
                stack.enter_context(_stoppable())
            return found[0]

        yield on


def run_all(
    studies: Sequence[tuple[Spec, Path]], on: Callable[[Spec], Cluster], *, command: str = "", show: Show = "auto"
) -> list[Outcome]:
    """Run studies one after another on one Ray of this machine.

    Args:
        studies: specs and their results folders; what an earlier call began there goes on.
        on: of `one_ray`.
        command: as for `run`.
        show: likewise.

    Returns:
        How each ended; those after the first that was interrupted are left out.

    Raises:
        SpecError, ClusterError, DataError, Halted: as `run`.
    """
    data_folder = data.data_folder().absolute()
    for spec, _ in studies:
        _data_folder(spec)
    outcomes: list[Outcome] = []
    for spec, folder in studies:
        outcomes.append(session(spec, folder.absolute(), data_folder, on(spec), command, show=show))
        if outcomes[-1].interrupted:
            break
    return outcomes


def same(spec: Spec, folder: Path) -> None:
    """Raise a `StorageError` unless the study in a results folder is that of a spec."""
    from study.spec.compare import differences, fixed_settings

    there = fixed_settings(read(folder / "spec.toml"))
    if changed := differences(there, fixed_settings(spec)):
        advice = "give a folder of its own, or the spec as it was"
        raise StorageError(
            f"--out {mirror.home(folder)}", [f"holds a study with another {', '.join(changed)}; {advice}"]
        )


def _tell_what_stays(spec: Spec, folder: Path) -> None:
    """Tell what a spec asks of a study in a results folder that may change, and that only its own spec.toml changes."""
    from study.spec.compare import all_settings, differences

    there, asked = read(folder / "spec.toml"), _with_absolute_storage(with_trials(spec, planned_trials(spec)))
    changed = differences(all_settings(there), all_settings(asked))
    if not changed:
        return
    home, advice = mirror.home(folder), []
    if any(key.split(".")[0] in ("resources", "recording", "confirm") for key in changed):
        advice.append(
            f"to change resources, recording or confirm, edit {files.join(home, 'spec.toml')} and go on with it"
        )
    if (more := asked.budget.trials - there.budget.trials) > 0:
        advice.append(f"`{shlex.join(['study', 'extend', str(home)])} --trials {more}` adds trials")
    told = ", ".join(f"{key} = {_value(old)} (asked for: {_value(new)})" for key, (old, new) in changed.items())
    _tell("; ".join([f"note: {home} goes on with its own {told}", *advice]))


def _value(value: Any) -> str:
    """A value of a spec in a message: short, and without the password of a URL."""
    text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    text = re.sub(r"password=[^&]*", "password=***", re.sub(r"//.*@", "//***@", text))
    return text if len(text) <= 80 else f"{text[:77]}..."


def _data_folder(spec: Spec) -> Path:
    """Where downloaded data lie, absolute; those of a spec are fetched once, here, before anything is written."""
    folder = data.data_folder().absolute()
    if not is_foreign(spec.workload.data):
        data.load(spec.workload.data, folder)
    return folder


def _packed(spec: Spec, on: Cluster) -> Spec:
    """The spec with the share of a GPU that a trial takes, which the cluster then counts by too."""
    from study.cluster import packing

    spec = packing.resolved(spec, on)
    on.resources = spec.resources
    return spec


def _look_over(on: Cluster, spec: Spec, folder: Path) -> None:
    """See whether the nodes are fit, where others started them, and those that join later."""
    if on.joined:
        from study.cluster import nodes

        place, modules, code = mirror.home(folder), bundle.needed(spec.tables()), bundle.code_of(folder)
        nodes.fit_nodes(place, modules, code)
        on.look_over = partial(nodes.joined, place=place, modules=modules, code=code)


def with_trials(spec: Spec, trials: int) -> Spec:
    """The spec with another number of trials."""
    return spec.model_copy(update={"budget": spec.budget.model_copy(update={"trials": trials})})


def _with_absolute_storage(spec: Spec) -> Spec:
    """The spec with the file of its SQLite database, if it has one, named so that it is found from any folder."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(spec.tuning.storage or "")
    except ArgumentError:
        return spec  # there is none, or `claim_storage` says what is wrong with it
    if url.get_backend_name() != "sqlite" or not url.database:
        return spec
    absolute = url.set(database=str(Path(url.database).absolute())).render_as_string(hide_password=False)
    return spec.model_copy(update={"tuning": spec.tuning.model_copy(update={"storage": absolute})})


def session(spec: Spec, folder: Path, data_folder: Path, on: Cluster, command: str, *, show: Show = "auto") -> Outcome:
    """Run what is left of a study, on the Ray that this process is connected to: its trials, then its confirmation.

    Args:
        spec: what to search; `budget.trials` is how many there are to be in the end.
        folder: the results folder, absolute; made if it is not there.
        data_folder: where downloaded data lie, absolute.
        on: that Ray.
        command: for the provenance.
        show: see `study.progress.display.Show`.
    """
    from study import confirm
    from study.results import provenance
    from study.results.ownership import held

    packed = _packed(spec, on)  # what is open stays so in the folder: another session may have other GPUs
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder, command), _disk(folder):
        text = spec.to_toml()
        sessions = [*(provenance.read_provenance(folder).get("sessions") or []), provenance.new_session(command)]
        sessions[-1]["nodes"] = on.seen  # as they come
        files.write_text(folder / "spec.toml", text)
        provenance.write_provenance(folder, spec, sessions, finished=False)

        def note(kind: str, text: str) -> None:
            """Keep what befell nodes and workers for the report; what cannot be written now is with the next."""
            sessions[-1]["events"].append({"time": provenance.now(), "kind": kind, "text": text})
            with suppress(OSError):
                provenance.write_provenance(folder, spec, sessions, finished=False)

        outcome = _trials(packed, folder, data_folder, on, show, note)
        if spec.confirm and not outcome.interrupted and outcome.scored:
            winners = confirm.winners(spec, folder)
            below, final = folder / confirm.FOLDER, confirm.confirmation(spec, len(winners))
            files.write_text(below / "spec.toml", final.to_toml())
            provenance.write_provenance(below, final, sessions, finished=False)
            confirmed = _trials(confirm.confirmation(packed, len(winners)), below, data_folder, on, show, note, winners)
            provenance.write_provenance(below, final, sessions, finished=not confirmed.interrupted)
            total = outcome.ended + confirmed.ended, outcome.planned + confirmed.planned
            outcome = Outcome(folder, *total, outcome.scored)
        sessions[-1]["ended"] = provenance.now()
        provenance.write_provenance(folder, spec, sessions, finished=not outcome.interrupted)
        return outcome


def _trials(
    spec: Spec,
    folder: Path,
    data_folder: Path,
    on: Cluster,
    show: Show,
    note: Callable[[str, str], None],
    winners: list[Winner] | None = None,
    rounds: int = ROUNDS,
) -> Outcome:
    """Run the trials of a spec that have not ended yet, in a folder that this process holds.

    Trials that lost their worker between two trials, which Ray Tune gives up at once, run in a further round.
    """
    # Ray, Optuna and Tune are imported once cluster.connected has set their environment.
    from ray import tune

    from study.progress.display import ProgressDisplay
    from study.results.recovery import reconcile, repair_files
    from study.results.writer import MAX_FAILURES, Collector
    from study.tuning import importance
    from study.tuning.schedulers import scheduler
    from study.tuning.searcher import TruthfulSearch
    from study.tuning.space import Space
    from trainables.tune import trainable

    planned = spec.budget.trials
    (folder / "checkpoints").mkdir(exist_ok=True)
    checkpoints = files.join(mirror.home(folder), "checkpoints")
    fixed, code = {n: w.learning_rate for n, w in enumerate(winners or [])}, bundle.code_of(folder)
    space = Space(spec, str(data_folder), checkpoints, fixed, str(code) if code else "")
    display = ProgressDisplay(spec, planned, show)
    repair_files(folder, display.say)
    study = open_storage(spec, folder, display.say)
    for winner in (winners or [])[len(study.get_trials(deepcopy=False)) :]:
        study.enqueue_trial({name: winner.cell[name] for name in space.distributions(winner.cell)})
    state = reconcile(study, space, folder)
    trials = study.get_trials(deepcopy=False)
    past = {trial.number: dict(trial.intermediate_values) for trial in trials}
    stopped = {trial.number: trial.user_attrs["stopped"] for trial in trials if "stopped" in trial.user_attrs}
    left = planned - len(state.rows)
    search = TruthfulSearch(space, study, state.redo, on.room)
    display.go_on(state, folder)
    if winners and left > 0:
        what = "1 winner, at its" if left == 1 else f"{left} winners, each at its"
        display.say(f"confirming {what} tuned rate on {spec.lanes.seeds} fresh seeds")
    if left > 0:
        listeners: list[Listener] = [display, *_trackers(spec, folder, display)]

        def tick() -> None:
            display.tick()
            on.look()

        def tell(kind: str, text: str) -> None:
            display.say(text)
            note(kind, text)

        on.note = tell
        collector = Collector(spec, folder, search, listeners, tick, display.say, tell, final=rounds == 1)
        mode = search.mode

        cpus, gpus = float(spec.resources.cpus_per_trial), spec.resources.gpus

        def takes(config: dict[str, Any]) -> tune.PlacementGroupFactory:
            return tune.PlacementGroupFactory([{"CPU": cpus, "GPU": gpus if config["device"] == "cuda" else 0.0}])

        shutil.rmtree(folder / "tune", ignore_errors=True)
        tuner = tune.Tuner(
            tune.with_resources(trainable(spec.workload.model), takes),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=scheduler(spec, mode, past, stopped),
                metric="value",
                mode=mode,
                num_samples=left,
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder),
                callbacks=[collector],
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                progress_reporter=tune.CLIReporter(),  # silent; the one for notebooks would wipe the cell's output
                verbose=0,
            ),
        )
        try:
            with display, _stoppable():  # Ray Tune leaves handlers of its own behind
                tuner.fit()
        finally:
            for listener in listeners:
                listener.close()
        shutil.rmtree(folder / "tune", ignore_errors=True)
        if collector.orphans and not collector.cut_off:
            # As long as trials end, there is hope for the others.
            again = ROUNDS if collector.ended else rounds - 1
            return _trials(spec, folder, data_folder, on, show, note, winners, again)
    if display.done >= planned:
        if not files.is_uri(checkpoints):
            shutil.rmtree(checkpoints, ignore_errors=True)
        if not winners:
            importance.write(study, spec.tuning.objectives, spec.tuning.seed, folder, display.say)
    return Outcome(folder, display.done, planned, display.scored)


def open_storage(spec: Spec, folder: Path, say: Callable[[str], None] = lambda text: None) -> optuna.Study:
    """Optuna's study of a results folder, made if it is not there.

    Args:
        spec: the study's.
        folder: the results folder.
        say: told when the server of its database goes away, and when it is back.

    Raises:
        StorageError: if its database cannot be opened.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    from study.results.recovery import JOURNAL
    from study.tuning.searcher import directions

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = _database(spec, say) or JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    towards = directions(spec.tuning.objectives, spec.workload.metric)
    study = optuna.create_study(storage=storage, study_name=spec.name, directions=towards, load_if_exists=True)
    if spec.tuning.storage:
        of, here = study.user_attrs.get("results"), str(mirror.home(folder))
        if of and of != here and mirror.has_study(of):
            raise StorageError("tuning.storage", [f"its study {spec.name} is that of {of}, not of {here}"])
        if of != here:  # new, or moved
            study.set_user_attr("results", here)
    return study


def claim_storage(spec: Spec, folder: Path) -> None:
    """Make the study in the database, if the spec names one: of two runs that start together one is refused.

    Raises:
        StorageError: if it holds a study of this name already, or its confirmation's, or cannot be opened.
    """
    import optuna

    from study.tuning.searcher import directions

    if database := _database(spec):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        names = {study.study_name for study in database.get_all_studies()}
        towards = directions(spec.tuning.objectives, spec.workload.metric)
        try:
            if (name := f"{spec.name}-confirm") in names:
                raise optuna.exceptions.DuplicatedStudyError
            study = optuna.create_study(storage=database, study_name=(name := spec.name), directions=towards)
        except optuna.exceptions.DuplicatedStudyError as error:
            message = f"holds a study called {name} already; change the spec's name, or `study resume` its folder"
            raise StorageError("tuning.storage", [message]) from error
        study.set_user_attr("results", str(mirror.home(folder)))


def release_storage(spec: Spec) -> None:
    """Take the study that `claim_storage` made out of the database again, since nothing came of it."""
    import optuna

    if database := _database(spec):
        optuna.delete_study(study_name=spec.name, storage=database)


def _database(spec: Spec, say: Callable[[str], None] = lambda text: None) -> BaseStorage | None:
    import sqlalchemy.exc

    from study.tuning import storage as database

    if not spec.tuning.storage:
        return None
    try:
        return database.opened(spec.tuning.storage, say)
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError) as error:
        message = f"cannot be opened: {str(error).splitlines()[0]}; correct the URL, or install its driver"
        raise StorageError("tuning.storage", [message]) from error


def _trackers(spec: Spec, folder: Path, display: Any) -> list[Listener]:
    from study.progress import trackers

    found: list[Listener] = []
    if spec.recording.tensorboard:
        found.append(trackers.TensorBoard(folder / "tensorboard", spec.workload.metric))
    if spec.recording.mlflow:
        found.append(trackers.MLflow(spec.recording.mlflow, spec.name, folder, spec.workload.metric, display.say))
    return found


def _trial_name(trial: Trial) -> str:
    return f"trial-{trial.config['trial']:05d}"


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGUSR1 end a study as Ctrl-C does: clusters send them before they take a machine away.

    All three have their own handlers again at the end.
    """
    told = False

    def stop(number: int, frame: object) -> None:
        nonlocal told
        first, told = not told, True
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.raise_signal(signal.SIGINT)
        elif first:  # a shell's background: SIGINT does nothing; a second signal does not disturb what saves
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Turn a disk that takes no more into one clear message."""
    try:
        yield
    except Exception as error:
        chain = [error, error.__cause__, error.__context__]
        numbers = [each.errno for each in chain if isinstance(each, OSError)]
        why = [os.strerror(number) for number in numbers if number in _NO_SPACE]  # Arrow words it in its own way
        if not folder.is_dir() and any(number == errno.ENOENT for number in numbers):
            raise Halted(f"{folder}: was removed while the study ran in it; run the study again") from error
        # Optuna's name for whatever a database says.
        databases = [each for each in chain if type(each).__name__ == "StorageInternalError"]
        why += [str(each.__cause__ or each).splitlines()[0] for each in databases if each]
        if files.is_uri(home := mirror.home(folder)):  # Arrow's errors have no number
            why += [str(each) for each in chain if isinstance(each, OSError)]
        if not why:
            raise
        raise Halted(
            f"{home}: nothing more can be written ({why[0]}). Every trial that had ended is safe; "
            f"make space or mend that, then `study resume {home}`"
        ) from error


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)
