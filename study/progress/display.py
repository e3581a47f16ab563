"""Shows the progress of a study: live in a terminal or notebook, as plain lines elsewhere, or as JSON lines."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from analysis import results
from analysis.statistics import LEAST, Interval, metric_interval
from analysis.text import cost, duration
from study.progress.status import best_line
from study.results.recovery import State
from study.spec import Spec

if TYPE_CHECKING:
    from IPython.display import DisplayHandle

# Between plain lines, at least; and until a line follows although no trial has ended.
PLAIN_SECONDS, LONG_SECONDS = 15.0, 600.0
NOTEBOOK_SECONDS = 0.5
FIRST_ESTIMATE = 0.05

Show: TypeAlias = Literal["auto", "plain", "json", "quiet"]
"""auto: live in a terminal or notebook, plain elsewhere; json: one object per line on standard output."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Write nowhere from now on: a reader such as `head` that has left ends no study."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


class ProgressDisplay:
    """Counts trials by outcome, keeps the best one with its interval and the total cost, and shows them.

    The time left includes `after`: what follows these trials, in trials of the same cost.
    """

    def __init__(self, spec: Spec, planned: int, show: Show, after: float = 0.0) -> None:
        self.spec, self.planned, self.show, self.after = spec, planned, show, after
        self.maximize = spec.workload.metric == "accuracy"
        self.counts: Counter[str] = Counter()
        self.running: dict[int, dict[str, Any]] = {}
        self.best: dict[str, Any] | None = None
        self.interval: Interval | None = None
        self.scored = self.lanes = self.before = 0
        self.shown_ended = -1  # ended trials of which the last plain line knew; the first line says that trials run
        self.cpu_seconds = self.gpu_seconds = 0.0  # of trials that ended
        self.started = self.shown = time.monotonic()
        self.first: float | None = None  # when the first trial of this session ended
        self.console = _Console(
            stderr=show != "json",
            quiet=show == "quiet",
            soft_wrap=True,
            highlight=False,
            force_jupyter=None if show == "auto" else False,  # plain lines even in a notebook
        )
        self.live = Live(console=self.console, get_renderable=self._lines, refresh_per_second=4, transient=True)
        self.is_live = show == "auto" and self.console.is_terminal
        self.output: DisplayHandle | None = None  # of a notebook's cell

    @property
    def done(self) -> int:
        """Trials that ended, without interrupted ones."""
        return self.counts.total() - self.counts["interrupted"]

    def count_earlier(self, state: State, folder: Path) -> None:
        """Count the trials of earlier sessions."""
        for row in state.rows.values():
            self._count(row)
        self.before = self.done
        if self.best:
            lanes = results.load(folder).lanes
            self.interval = self._over_seeds(lanes[lanes["trial"] == self.best["trial"]].to_dict("records"))
        if state.rows or state.begun or state.redo:
            parts = [f"{self.done} of {self.planned} trials have ended"]
            parts += [f"{len(state.begun)} continue from their checkpoints"] if state.begun else []
            parts += [f"{len(state.redo)} with lost rows run again"] if state.redo else []
            self.say(f"{self.spec.name}: {', '.join(parts)}")

    def stop(self) -> None:
        """Say that the time-out has ended the search: no more trials are planned."""
        of, timeout = self.planned, self.spec.tuning.timeout
        self.planned = self.done
        self.say(
            f"stopped after {self.done} of {of} trials: timeout = {timeout}; to continue, resume with a longer one"
        )

    def say(self, message: str) -> None:
        """Show a message at once."""
        if self.show == "json":
            self._object("message", text=message)
        else:
            self.console.print(message, markup=False)

    def __enter__(self) -> ProgressDisplay:
        self.started = time.monotonic()
        if self.is_live:
            self.live.start()
        elif self.console.is_jupyter:  # where Live needs ipywidgets
            from IPython.display import DisplayHandle

            self.output = DisplayHandle()
            self.output.display(self._lines())
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()
        if self.show == "json":
            self._object("end", **self.numbers())
        elif self.output:
            self.output.update(Text(self.summary()))
        else:
            self.console.print(self.summary(), markup=False)

    def began(self, trial: int, config: dict[str, Any]) -> None:
        """Count a trial as running."""
        self.running[trial] = {}

    def reported(self, trial: int, result: dict[str, Any]) -> None:
        """Keep a trial's latest result."""
        self.running[trial] = result

    def ended(self, row: dict[str, Any]) -> None:
        """Count a trial by its outcome, and keep the best one."""
        last = self.running.pop(row["trial"], {})
        self.first = self.first or time.monotonic()
        if self._count(row):
            self.interval = self._over_seeds(last["payload"].lanes) if last else None
        self.lanes += row["lanes"] or 0
        if self.show == "json":
            cell = ("optimizer", "batch_size", "width", "depth")
            keep = ("trial", "outcome", "value", "learning_rate", "recipe", *cell, "error")
            self._object("trial", **{name: row.get(name) for name in keep}, **self.numbers())

    def tick(self) -> None:
        """Refresh what is shown while no trial ends."""
        if self.output:
            if time.monotonic() - self.shown > NOTEBOOK_SECONDS:
                self.shown = time.monotonic()
                self.output.update(self._lines())
        elif not self.is_live and self.show in ("auto", "plain"):
            pause = PLAIN_SECONDS if self.counts.total() > self.shown_ended else LONG_SECONDS
            if time.monotonic() - self.shown > pause:
                self.shown, self.shown_ended = time.monotonic(), self.counts.total()
                self.console.print(self.summary(), markup=False)

    def close(self) -> None:
        """Nothing to close."""

    def numbers(self) -> dict[str, Any]:
        """The numbers that are shown; None if a number is unknown."""
        running = self.running.values()
        spent = [(self.cpu_seconds, self.gpu_seconds), *map(self._spent, running)]
        cpu, gpu = (sum(seconds) for seconds in zip(*spent, strict=True))
        elapsed, since = time.monotonic() - self.started, self.done - self.before
        best = self.best or {}
        return {
            "done": self.done,
            "planned": self.planned,
            "running": len(self.running),
            "outcomes": dict(self.counts),
            "best": best.get("value"),
            "best_trial": best.get("trial"),
            "best_low": self.interval.low if self.interval else None,
            "best_high": self.interval.high if self.interval else None,
            "lanes_per_second": self.lanes / elapsed if elapsed > 0 else 0.0,
            "cpu_hours": cpu / 3600,
            "gpu_hours": gpu / 3600,
            "seconds_left": self._seconds_left(since),
        }

    def _seconds_left(self, since: int) -> int | None:
        """By the trials that ended after the first one of this session, which waited for its worker to start.

        None before 5% of the trials have ended, and for the first two.
        """
        if self.first is None or since < max(3, FIRST_ESTIMATE * self.planned):
            return None
        each = (time.monotonic() - self.first) / (since - 1)
        return math.ceil(each * (self.planned - self.done + self.after))

    def _words(self) -> tuple[list[str], list[str], str]:
        """Outcomes, speed with cost, and the time left, in words."""
        now = self.numbers()
        outcomes = [f"{count} {name}" for name, count in self.counts.items()]
        speed = [f"{now['lanes_per_second']:.1f} lanes/s"] if self.lanes else []
        left = f"about {duration(round(now['seconds_left']))} left" if now["seconds_left"] else ""
        return outcomes, [*speed, cost(now["cpu_hours"], now["gpu_hours"])], left

    def summary(self) -> str:
        """One line: counts, speed, cost, time left and the best trial."""
        outcomes, spent, left = self._words()
        counts = f" ({', '.join(outcomes)})" if outcomes else ""
        running = f"{len(self.running)} running" if self.running else ""
        parts = [f"{self.done}/{self.planned} trials{counts}", running, *spent, left]
        return ", ".join(filter(None, parts)) + (f"; {self._best()}" if self.best else "")

    def _lines(self) -> Table:
        """The live display: progress bar, counts and best trial; lines are cut to the terminal's width."""
        outcomes, spent, left = self._words()
        elapsed, progress = duration(time.monotonic() - self.started), ProgressBar(self.planned, self.done, width=24)
        bar, lines = Table.grid(padding=(0, 1)), Table.grid()
        bar.add_row("trials", progress, f"{self.done}/{self.planned}", elapsed, left)
        lines.add_row(bar)
        for text in (" · ".join([f"{len(self.running)} running", *outcomes, *spent]), self._best()):
            lines.add_row(Text(text, no_wrap=True, overflow="ellipsis"))
        return lines

    def _best(self) -> str:
        interval = (self.interval.low, self.interval.high) if self.interval else None
        return best_line(self.spec.workload.metric, self.best, interval) if self.best else ""

    def _spent(self, trial: dict[str, Any]) -> tuple[float, float]:
        return results.spent(trial, self.spec.resources.cpus_per_trial, self.spec.resources.gpus)

    def _count(self, row: dict[str, Any]) -> bool:
        """Count a trial; True if it is the best so far."""
        self.counts[row["outcome"]] += 1
        cpu, gpu = self._spent(row)
        self.cpu_seconds += cpu
        self.gpu_seconds += gpu
        value = row["value"]
        if value is None or math.isnan(value):
            return False
        self.scored += 1
        better = self.best is None or (value > self.best["value"]) == self.maximize
        self.best = row if better and row["outcome"] == "completed" else self.best
        return self.best is row

    def _over_seeds(self, lanes: list[dict[str, Any]]) -> Interval:
        """The best trial's interval over seeds, at its tuned setting."""
        assert self.best
        metric, tuned = self.spec.workload.metric, (self.best["learning_rate"], self.best.get("recipe") or "")
        own = [lane for lane in lanes if (lane["learning_rate"], lane.get("recipe") or "") == tuned]
        values = [lane[f"validation_{metric}"] for lane in own]
        known = [value for value in values if value is not None]
        floor = self.best.get("loss_floor") or LEAST
        return metric_interval(known, metric, self.spec.workload.facts.validation, floor=floor)

    def _object(self, event: str, **content: Any) -> None:
        """Print a JSON line, with null for numbers that are not finite."""
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in content.items()}
        self.console.out(json.dumps({"event": event, "study": self.spec.name, **plain}), highlight=False)
