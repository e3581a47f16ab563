"""Runs one session of a study on the Ray that this process is connected to: search, confirm, record what happened."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from study.cluster import packing
from study.cluster.compat import forward_no_credentials
from study.cluster.ray import Cluster
from study.errors import Halted, InputError
from study.progress import trackers
from study.progress.display import ProgressDisplay, Show
from study.results import CONFIRM, confirm, mirror
from study.results.confirm import Winner
from study.results.ownership import own_folder
from study.results.provenance import Record, write_provenance
from study.results.recovery import clear_checkpoints, reconcile, repair_files
from study.results.writer import MAX_FAILURES, Collector, Listener, discard
from study.spec import Spec
from study.spec.secrets import expanded, redacted
from study.tuning import importance, warm_start
from study.tuning.schedulers import scheduler
from study.tuning.searcher import TruthfulSearch
from study.tuning.space import Space
from study.tuning.storage import DATABASE_ERRORS, delete_study, open_study, wait_until_back
from study.usercode import bundle
from trainables import storage
from trainables.engines.kernel import build
from trainables.tune import trainable

# Set once this process has been asked to end a study; cleared by the next command.
ASKED = threading.Event()
# Rounds in a row in which no trial ends, before the session gives up what keeps them from ending.
ROUNDS = 3


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        folder: the results folder, or its URI.
        ended: trials that ended, in whatever way.
        planned: trials that the spec asks for, or that began before its time-out; the confirmation's included.
        scored: trials with a value.
        report: the report's page; None if no trial has begun, or the study was interrupted.
        verdict: its first lines: who wins or that nobody does, the best setting, the cost.
    """

    folder: Path | str
    ended: int
    planned: int
    scored: int
    report: Path | str | None = None
    verdict: tuple[str, ...] = ()

    @property
    def interrupted(self) -> bool:
        """Whether trials are missing."""
        return self.ended < self.planned


@dataclass(frozen=True)
class Stage:
    """The search of a study or its confirmation: where its trials run and write."""

    spec: Spec  # what to run; `budget.trials` is the number of trials in the end
    folder: Path  # its results folder, owned by this process
    data_folder: Path  # where downloaded data lie, absolute
    cluster: Cluster  # the Ray to run on
    show: Show  # how progress is shown
    record: Record  # of this session
    winners: list[Winner] = field(default_factory=list)  # the settings to confirm; empty for the search

    @property
    def checkpoints(self) -> str:
        """Where running trials keep their state: a folder, or a URI that all nodes reach."""
        return storage.join(mirror.home(self.folder), "checkpoints")


def run_session(
    spec: Spec,
    folder: Path,
    data_folder: Path,
    cluster: Cluster,
    command: str,
    *,
    show: Show = "auto",
    start_seconds: float = 0.0,
) -> Outcome:
    """Run the remaining trials of a study, up to `budget.trials` of them, then its confirmation.

    Both folders are absolute; that of the results is created if it does not exist. `start_seconds` is what Ray's start
    has taken, for the provenance.
    """
    # The folder keeps an open share of a GPU open: another session may have other GPUs.
    packed = packing.resolved(spec)
    cluster.resources = packed.resources
    folder.mkdir(parents=True, exist_ok=True)
    with own_folder(folder, command), _halt_on_write_errors(folder):
        storage.write_text(folder / "spec.toml", spec.to_toml())
        record = Record(folder, spec, command, cluster.seen)
        search = Stage(packed, folder, data_folder, cluster, show, record)
        record.phase_seconds["start"] = round(start_seconds, 1)
        with record.phase("search"):
            outcome = _run_stage(search)
        if spec.confirm and not outcome.interrupted:
            with record.phase("confirmation"):
                confirmed = _confirm(spec, search, record)
            ended, planned = outcome.ended + confirmed.ended, outcome.planned + confirmed.planned
            outcome = Outcome(folder, ended, planned, outcome.scored)
        record.end(finished=not outcome.interrupted)
        return outcome


def _confirm(spec: Spec, search: Stage, record: Record) -> Outcome:
    """Run the winners of a finished search again, on fresh seeds, in a results folder of their own."""
    say = ProgressDisplay(spec, 0, search.show).say
    winners, folder = confirm.winners(spec, search.folder, say), search.folder / CONFIRM
    if not winners:
        say("no trial completed, so there is nothing to confirm")
        return Outcome(folder, 0, 0, 0)
    if not (folder / "spec.toml").exists():
        delete_study(confirm.confirmation(spec, len(winners)))  # in a database, of a confirmation that begins again
    while True:
        final = confirm.confirmation(spec, len(winners))
        storage.write_text(folder / "spec.toml", final.to_toml())
        write_provenance(folder, final, record.sessions, finished=False)
        packed = confirm.confirmation(search.spec, len(winners))
        outcome = _run_stage(replace(search, spec=packed, folder=folder, winners=winners))
        if outcome.interrupted or not confirm.add_seeds(spec, search.folder):
            write_provenance(folder, final, record.sessions, finished=not outcome.interrupted)
            return outcome
        winners = confirm.winners(spec, search.folder, say)


def _run_stage(stage: Stage) -> Outcome:
    """Run the trials of a stage that have not ended.

    Trials whose worker died between two trials, which Ray Tune gives up at once, run in a further round. So do all that
    remain after the server of Optuna's database was away: as after a crash, the tables say what is missing.
    """
    rounds, failed, done = ROUNDS, 0, -1
    why = build.unavailable()
    while True:
        after = 0.0 if stage.winners else confirm.cost(stage.spec)
        display = ProgressDisplay(stage.spec, stage.spec.budget.trials, stage.show, after)
        if why and not stage.winners:
            display.say(f"no native kernel on this machine ({why}): training on its CPUs is several times slower")
        try:
            collector = _run_round(stage, display, final=rounds == 1)
        except InputError:
            raise
        except Exception as error:
            failed, done = failed + 1 if display.done == done else 1, display.done
            if failed > ROUNDS:  # the server answers, but does not do what it is asked
                raise
            wait_until_back(stage.spec, error, display.say)
            continue
        if not collector or not collector.orphans or collector.cut_off:
            return Outcome(stage.folder, display.done, display.planned, display.scored)
        # As long as trials end, there is hope for the others.
        rounds = ROUNDS if collector.ended else rounds - 1


def _run_round(stage: Stage, display: ProgressDisplay, *, final: bool) -> Collector | None:
    """Bring the folder in order, and run once what has not ended; None if nothing is left."""
    (stage.folder / "checkpoints").mkdir(exist_ok=True)
    settings = {number: winner.setting for number, winner in enumerate(stage.winners)}
    cells = {number: winner.cell for number, winner in enumerate(stage.winners)}
    code = bundle.code_of(stage.folder)
    looks = {number: winner.look for number, winner in enumerate(stage.winners)}
    code_folder = str(code) if code else ""
    space = Space(stage.spec, str(stage.data_folder), stage.checkpoints, settings, cells, looks, code_folder)
    repair_files(stage.folder, display.say)
    study = open_study(stage.spec, stage.folder)
    if stage.spec.tuning.storage:
        mirror.check_home(study, stage.folder)
    state = reconcile(study, space, stage.folder, display.say)
    display.count_earlier(state, stage.folder)
    remaining = stage.spec.budget.trials - len(state.rows)
    collector = None
    if remaining > 0:
        if stage.winners:
            what = "1 setting" if remaining == 1 else f"{remaining} settings, each"
            who = "best cells, the best of each optimizer and regime, and baselines"
            display.say(f"confirming {what} on {stage.spec.lanes.seeds} fresh seeds ({who})")
        limit = (lambda: False) if stage.winners else stage.record.time_up
        warm = warm_start.warmed(study, space, stage.folder)
        search = TruthfulSearch(space, warm, state.redo, stage.cluster.room, limit)
        if not search.finish():
            collector = _tune(stage, display, search, remaining, final=final)
        if search.finished and not (collector and (collector.cut_off or collector.orphans)):
            display.stop()
    if display.done >= display.planned:
        if storage.is_uri(stage.checkpoints):
            # A worker saves when Ray Tune ends it, which may be after the scheduler stopped its last trial.
            for trial in study.get_trials(deepcopy=False):
                if "stopped" in trial.user_attrs:
                    discard(space.checkpoint(trial.number), stage.folder)
        else:
            clear_checkpoints(stage.checkpoints, (), stage.folder, display.say)
            with suppress(OSError):  # a worker that Ray has given up may still write
                Path(stage.checkpoints).rmdir()
        if not stage.winners:
            importance.write(study, stage.spec.tuning.objectives, stage.spec.tuning.seed, stage.folder, display.say)
    return collector


def _tune(stage: Stage, display: ProgressDisplay, search: TruthfulSearch, remaining: int, *, final: bool) -> Collector:
    """Run trials until Ray Tune has none left, or a signal ends it."""
    spec, folder, metric = stage.spec, stage.folder, stage.spec.workload.metric
    listeners: list[Listener] = [display]
    if spec.recording.tensorboard:
        listeners.append(trackers.TensorBoard(folder / "tensorboard", metric))
    if spec.recording.wandb:
        listeners.append(trackers.WeightsAndBiases(folder, spec.name, metric))
    if spec.recording.mlflow:
        listeners.append(
            trackers.MLflow(expanded("recording.mlflow", spec.recording.mlflow), spec.name, folder, metric, display.say)
        )

    def tick() -> None:
        _announce_interrupt(display.say)
        display.tick()
        stage.cluster.look()
        stage.record.tick()

    def tell(kind: str, text: str) -> None:
        display.say(text)
        stage.record.note(kind, text)

    stage.cluster.note = tell
    collector = Collector(spec, folder, search, listeners, tick, display.say, tell, final=final)
    shutil.rmtree(folder / "tune", ignore_errors=True)
    forward_no_credentials()
    tuner = _tuner(stage, search, collector, remaining)
    try:
        with display, stoppable():  # Ray Tune leaves handlers of its own behind
            tuner.fit()
    finally:
        for listener in listeners:
            listener.close()
    shutil.rmtree(folder / "tune", ignore_errors=True)
    return collector


def _tuner(stage: Stage, search: TruthfulSearch, collector: Collector, remaining: int) -> tune.Tuner:
    spec = stage.spec
    resources = partial(_resources, cpus=float(spec.resources.cpus_per_trial), gpus=spec.resources.gpus)
    return tune.Tuner(
        tune.with_resources(trainable(spec.workload.model), resources),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler(spec, search.mode, search.earlier()),
            metric="value",
            mode=search.mode,
            num_samples=remaining,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(stage.folder),
            callbacks=[collector],
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            progress_reporter=tune.CLIReporter(),  # silent; the one for notebooks would wipe the cell's output
            verbose=0,
        ),
    )


def _resources(config: dict[str, Any], cpus: float, gpus: float) -> tune.PlacementGroupFactory:
    return tune.PlacementGroupFactory([{"CPU": cpus, "GPU": gpus if config["device"] == "cuda" else 0.0}])


def _trial_name(trial: Trial) -> str:
    return f"trial-{trial.config['trial']:05d}"


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 end a study as Ctrl-C does: clusters send them before they take a machine away.

    The handlers of all three signals are restored at the end.
    """
    signalled = False

    def stop(number: int, frame: object) -> None:
        nonlocal signalled
        first, signalled = not signalled, True
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.raise_signal(signal.SIGINT)
        elif first:  # SIGINT is ignored in a shell's background; a second signal must not disturb what saves
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


def _announce_interrupt(say: Callable[[str], None]) -> None:
    """Put a handler that says what Ctrl-C waits for before that of Ray Tune, which sets one of its own as it starts."""
    handler = signal.getsignal(signal.SIGINT)
    if getattr(handler, "__module__", "") != "ray.tune.tune":
        return

    def announce(number: int, frame: object) -> None:
        ASKED.set()
        say(
            "stopping: running trials save their state, which takes some seconds; "
            "a second Ctrl-C ends at once without saving"
        )
        handler(number, frame)  # type: ignore[operator,misc,arg-type]

    signal.signal(signal.SIGINT, announce)


@contextmanager
def _halt_on_write_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the disk, the store or the database into `Halted`, with one line that says what to do."""
    try:
        yield
    except Exception as error:
        chain = [error, error.__cause__, error.__context__]
        numbers = [each.errno for each in chain if isinstance(each, OSError)]
        reasons = [os.strerror(number) for number in numbers if number in _NO_SPACE]  # Arrow has words of its own
        if not folder.is_dir() and any(number == errno.ENOENT for number in numbers):
            raise Halted(f"{folder}: was removed while the study ran in it; run the study again") from error
        databases = [each for each in chain if isinstance(each, DATABASE_ERRORS)]
        reasons += [redacted(str(each.__cause__ or each).splitlines()[0]) for each in databases]
        if storage.is_uri(home := mirror.home(folder)):  # Arrow's errors have no number
            reasons += [str(each) for each in chain if isinstance(each, OSError)]
        if not reasons:
            raise
        raise Halted(
            f"{home}: nothing more can be written ({reasons[0]}). Every trial that had ended is safe; "
            f"make space or fix that, then `study resume {home}`"
        ) from error


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)
