"""Ray Tune in one process: trials step when told to, and workers die when told to.

`Tuner` calls the searcher, the scheduler and the callbacks in the order in which the `TuneController` of Ray 2.60 calls
them; the names of its private methods are those of the controller. The trainables are real.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ray.tune.error import TuneError
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

if TYPE_CHECKING:
    from tests.fakes.world import World

WORKER_DIED = "The actor died unexpectedly before finishing this task."
NODE_DIED = "The actor died because its node has died."


@dataclass(eq=False)
class Worker:
    """A process of a node that holds a trainable."""

    node: str
    trainable: Any


@dataclass(eq=False)
class Trial:
    """What callbacks and schedulers see of `ray.tune.experiment.Trial`."""

    trial_id: str
    config: dict[str, Any]
    error_file: str
    status: str = "PENDING"
    last_result: dict[str, Any] = field(default_factory=dict)
    run_metadata: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(num_failures=0))

    @property
    def num_failures(self) -> int:
        return int(self.run_metadata.num_failures)

    @property
    def number(self) -> int:
        return int(self.config["trial"])

    def handle_error(self, reason: str) -> None:
        self.run_metadata.num_failures += 1
        with Path(self.error_file).open("a") as file:
            file.write(f"Failure # {self.num_failures} (occurred at some time)\n{reason}\n")


class Tuner:
    """Stands in for `ray.tune.Tuner`; `World` decides what happens next."""

    world: World

    def __init__(self, trainable: Any, *, tune_config: Any, run_config: Any) -> None:
        self.trainable = getattr(trainable, "__wrapped__", trainable)
        self.searcher, self.scheduler = tune_config.search_alg, tune_config.scheduler
        self.samples, self.callbacks = tune_config.num_samples, run_config.callbacks
        self.max_failures = run_config.failure_config.max_failures
        self.folder = Path(run_config.storage_path) / run_config.name
        self.trials: list[Trial] = []
        self.workers: dict[Trial, Worker] = {}
        self.idle: list[Worker] = []
        self.iteration, self.interrupted = 0, False

    # What the controller does.

    def fit(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            while not self._is_finished() and not self.interrupted:
                self._maybe_update_trial_queue()
                self._maybe_add_actors()
                self.world.pause(self)
                self.iteration += 1
                self._call("on_step_end")
        except Exception:
            self._cleanup()
            raise
        self._cleanup()

    def running(self) -> list[Trial]:
        return list(self.workers)

    def _is_finished(self) -> bool:
        return len(self.trials) >= self.samples and all(t.status in ("TERMINATED", "ERROR") for t in self.trials)

    def _maybe_update_trial_queue(self) -> None:
        while len(self.trials) < self.samples:
            name = f"trial-{len(self.trials)}"
            config = self.searcher.suggest(name)
            if config == Searcher.FINISHED:
                self.samples = len(self.trials)
            if config is None or config == Searcher.FINISHED:
                return
            trial = Trial(name, config, str(self.folder / f"{name}-error.txt"))
            self.trials.append(trial)
            self.scheduler.on_trial_add(self, trial)

    def _maybe_add_actors(self) -> None:
        """Give pending trials to idle workers, then to new ones where there is room."""
        for trial in [each for each in self.trials if each.status == "PENDING"]:
            config = pickle.loads(pickle.dumps(trial.config))
            if self.idle:
                worker = self.idle.pop(0)
                worker.trainable.reset(config)
            elif node := self._free_node():
                worker = Worker(node, self.trainable(config))
            else:
                return
            self.workers[trial] = worker
            self._call("on_trial_start", trial)
            trial.status = "RUNNING"

    def _free_node(self) -> str | None:
        taken = [worker.node for worker in [*self.workers.values(), *self.idle]]
        return next((node for node in self.world.nodes if node not in taken), None)

    def _process_trial_result(self, trial: Trial, result: dict[str, Any]) -> None:
        done = result["done"]
        decision = TrialScheduler.STOP if done else self.scheduler.on_trial_result(self, trial, result)
        if decision == TrialScheduler.STOP:
            result["done"] = True
        else:
            self.searcher.on_trial_result(trial.trial_id, result)
        self._call("on_trial_result", trial, result=result)
        trial.last_result = result
        if decision == TrialScheduler.STOP:
            self._stop_trial(trial)

    def _stop_trial(self, trial: Trial) -> None:
        try:
            self.scheduler.on_trial_complete(self, trial, trial.last_result)
            self.searcher.on_trial_complete(trial.trial_id, result=trial.last_result)
            self._call("on_trial_complete", trial)
            trial.status = "TERMINATED"
            self.idle.append(self.workers.pop(trial))
        except Exception:  # noqa: BLE001  so does the controller
            self._process_trial_failure(trial, traceback.format_exc())

    def _process_trial_failure(self, trial: Trial, reason: str) -> None:
        trial.handle_error(reason)
        self.workers.pop(trial, None)
        if trial.status == "RUNNING" and trial.num_failures <= self.max_failures:
            self.scheduler.on_trial_error(self, trial)
            trial.status = "PENDING"
            self.trials.remove(trial)
            self.trials.append(trial)
            self.scheduler.on_trial_add(self, trial)
            self._call("on_trial_recover", trial)
        elif trial.status in ("RUNNING", "PENDING"):
            self.scheduler.on_trial_error(self, trial)
            self.searcher.on_trial_complete(trial.trial_id, error=True)
            trial.status = "ERROR"
            self._call("on_trial_error", trial)

    def _cleanup(self) -> None:
        for trial, worker in list(self.workers.items()):
            trial.status = "TERMINATED"
            worker.trainable.stop()
        for worker in self.idle:
            worker.trainable.stop()
        self.workers.clear()
        self.idle.clear()
        self._call("on_experiment_end")

    def _call(self, name: str, trial: Trial | None = None, **more: Any) -> None:
        given = more if trial is None else {"trial": trial, **more}
        if name != "on_experiment_end":
            given["iteration"] = self.iteration
        for callback in self.callbacks:
            getattr(callback, name)(trials=self.trials, **given)

    # What happens to it.

    def step(self, trial: Trial) -> None:
        """Train one step of a trial, and hand its result to the callbacks."""
        result = pickle.loads(pickle.dumps(self.workers[trial].trainable.train()))
        with _as_tune_error():
            self._process_trial_result(trial, result)

    def kill_workers(self, trials: Iterable[Trial], reason: str = WORKER_DIED, *, stepped: bool = False) -> None:
        """Kill the workers of trials, which may have made a step whose result never arrives."""
        for trial in list(trials):
            if stepped:
                self.workers[trial].trainable.train()
            del self.workers[trial]
            with _as_tune_error():
                self._process_trial_failure(trial, reason)

    def kill_between(self, trial: Trial, *, twice: bool) -> None:
        """Kill a worker while it is given a trial; Ray Tune then gives the trial up at once.

        Args:
            trial: that it is given.
            twice: whether the failed actor and its failed task are both processed, each as a failure of its own.
        """
        del self.workers[trial]
        with _as_tune_error():
            if twice:
                self._process_trial_failure(trial, WORKER_DIED)
            trial.status = "PENDING"
            self._process_trial_failure(trial, WORKER_DIED)


class _as_tune_error:
    """Errors of callbacks become `TuneError` within the handler of a task's result."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception):
            raise TuneError("".join(traceback.format_exception(error))) from error
