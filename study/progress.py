"""Shows how a study goes: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections import Counter
from types import TracebackType
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from study.outcomes import outcome
from study.watch import describe

PLAIN_SECONDS = 15.0


class ProgressDisplay(tune.Callback):
    """A callback that counts trials by outcome, remembers the best and shows both.

    Args:
        planned: trials to come.
        metric: name of the metric.
        maximize: whether more of it is better.
        quiet: count, but show nothing.
    """

    def __init__(self, planned: int, metric: str, *, maximize: bool, quiet: bool) -> None:
        self.planned, self.metric, self.maximize = planned, metric, maximize
        self.counts: Counter[str] = Counter()
        self.running: set[str] = set()
        self.best: tuple[float, str] | None = None
        self.scored = 0
        self.console = Console(stderr=True, quiet=quiet)
        self.shown = time.monotonic()
        self.live: Progress | None = None
        if self.console.is_terminal and not quiet:
            self.live = Progress(
                TextColumn("trials"),
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.description}", markup=False),
                console=self.console,
            )
            self.task = self.live.add_task("", total=planned)

    @property
    def ended(self) -> int:
        """Trials that ended, in whatever way."""
        return sum(self.counts.values())

    def __enter__(self) -> ProgressDisplay:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()
        else:
            self.console.print(self.summary(), markup=False, highlight=False, soft_wrap=True)

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune pickles callbacks with its snapshots; the display itself cannot be and need not.
        return {**self.__dict__, "console": None, "live": None}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Show something from time to time even while no trial ends."""
        self._show()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Count a trial as running."""
        self.running.add(trial.trial_id)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Count a trial by how it ended, and keep the best."""
        result = trial.last_result
        ended = outcome(result)
        value = result.get("value", math.nan)
        if not math.isnan(value):
            self.scored += 1
            if ended == "completed" and (self.best is None or (value > self.best[0]) == self.maximize):
                self.best = value, describe(trial.config, result["learning_rate"])
        self._end(trial, ended)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Count a failed trial."""
        self._end(trial, "failed")

    def summary(self) -> str:
        """One line: counts and the best so far."""
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        text = f"{self.ended}/{self.planned} trials ({counts})" if counts else f"0/{self.planned} trials"
        if self.running:
            text += f", {len(self.running)} running"
        if self.best:
            text += f"; best {self.metric} {self.best[0]:.4g}: {self.best[1]}"
        return text

    def _end(self, trial: Trial, ended: str) -> None:
        self.running.discard(trial.trial_id)
        self.counts[ended] += 1

    def _show(self) -> None:
        if self.live:
            bad = [f"{count} {name}" for name, count in self.counts.items() if name != "completed"]
            best = [f"best {self.metric} {self.best[0]:.4g}: {self.best[1]}"] if self.best else []
            self.live.update(self.task, completed=self.ended, description="; ".join(bad + best))
        elif time.monotonic() - self.shown > PLAIN_SECONDS:
            self.shown = time.monotonic()
            self.console.print(self.summary(), markup=False, highlight=False, soft_wrap=True)
