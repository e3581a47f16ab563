"""What the report shows: each figure with its title, caption and numbers, or why there is none."""

from __future__ import annotations

import base64
import io
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import figures, series, tables
from analysis.figures import COLUMN_MM, MOST_LINES, MOST_WORKERS, PAGE_MM
from analysis.results import Results, table_of
from analysis.wording import band_note, counted, listing, metric_text, seed_counts, short

SCREEN_DPI = 130  # larger than in print, where the figures are set for 180 mm

PARTS = ("regimes", "optimizers", "batch size", "width and depth", "search", "ledger")
"""The parts of the report that show figures."""


@dataclass(frozen=True)
class Exhibit:
    """A figure that the report shows: how it is drawn, and what stands below it.

    Without data there is no image, but `reason` why.
    """

    part: str
    name: str
    title: str
    caption: str
    alt: str
    data: pd.DataFrame
    draw: Callable[[], Figure]
    reason: str

    def save(self, out: Path, prefix: str) -> dict[str, Any]:
        """Write SVG, PDF and CSV; return what the template needs."""
        files = {kind: f"figures/{prefix}{self.name}.{kind}" for kind in ("svg", "pdf", "csv")}
        shown = {"part": self.part, "title": self.title, "caption": self.caption, "alt": self.alt, "files": files}
        if self.data.empty:
            for kind in files.values():  # of an earlier report; it would contradict this one
                (out / kind).unlink(missing_ok=True)
            return shown | {"image": None, "reason": self.reason}
        try:
            svg, pdf, size = self._rendered()
        except Exception as error:  # noqa: BLE001 - one figure that fails must not take the report with it
            return shown | {"image": None, "reason": f"it could not be drawn ({type(error).__name__}: {error})"}
        write_file(out / files["svg"], svg)
        write_file(out / files["pdf"], pdf)
        write_file(out / files["csv"], self.data.to_csv(index=False).encode())
        image = "data:image/svg+xml;base64," + base64.b64encode(figures.adaptive(svg)).decode()
        return shown | {"image": image, "size": [round(SCREEN_DPI * inches) for inches in size]}

    def _rendered(self) -> tuple[bytes, bytes, tuple[float, float]]:
        """The SVG and PDF files, and the size in inches."""
        with figures.style():
            drawn = self.draw()
            svg, pdf = io.BytesIO(), io.BytesIO()
            drawn.savefig(svg, format="svg", metadata={"Date": None, "Title": self.title})
            drawn.set_layout_engine("none")  # keeps what was laid out, which takes most of the time
            drawn.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Title": self.title})
            width, height = drawn.get_size_inches()
        return svg.getvalue(), pdf.getvalue(), (width, height)


def exhibits(results: Results, table: pd.DataFrame) -> list[Exhibit]:
    """All figures, in the order in which they are shown."""
    metric, unit, maximize = results.metric, unit_of(results), results.maximize
    mean = "geometric mean" if metric == "loss" else "mean (on the log-odds scale)"
    none = "no cell has a tuned learning rate yet"
    no_target = "the workload names no target" if results.target is None else "no cell reached the target on every seed"

    def single(
        draw: Callable[[Axes], Any], width: float = 0.78 * PAGE_MM, height: float = 80.0
    ) -> Callable[[], Figure]:
        return lambda: with_legend(draw, width, height)

    def heat(data: pd.DataFrame, rows: str, columns: str, *, contours: bool) -> Callable[[], Figure]:
        def drawn() -> Figure:
            figure = _heat_map_size(data)
            figures.heat_map(data, figure.subplots(), rows, columns, metric, contours)
            return figure

        return drawn

    def varied(data: pd.DataFrame, *columns: str) -> pd.DataFrame:
        """The frame, emptied if it has one value only of what it should compare."""
        return data if any(data[column].nunique() > 1 for column in columns) else data.head(0)

    curves = series.regime_curves(results, table)
    shortest = float(curves.groupby("regime")["examples"].max().min()) if len(curves) else 0.0

    def regimes() -> Figure:
        figure = figures.figure(PAGE_MM, 125)
        panels = figure.subplots(2, 2, sharey=True).ravel()
        for ax, by in zip(panels, tables.AXES, strict=True):
            figures.loss_by_regime(curves, ax, by, metric, unit)
            ax.set_ylabel("")
        figure.supylabel(f"validation {metric}" + (f", {unit}" if unit else ""), fontsize=8)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=1)
        return figure

    noise = series.noise_and_speed(results, table)
    level = metric_text(float(noise["level"].iloc[0]), "loss") if len(noise) else ""
    rates = series.rate_sensitivity(results, table)
    rates_by = {by: varied(series.rate_sensitivity(results, table, by), "group") for by in ("batch_size", "width")}
    seeds_by = {by: own.loc[own["eligible"], "n"] for by, own in rates_by.items()}
    leader = str(rates_by["width"]["optimizer"].iloc[0]) if len(rates_by["width"]) else ""
    of_size = str(rates_by["batch_size"]["optimizer"].iloc[0]) if len(rates_by["batch_size"]) else ""
    profile = series.profile([results])
    batches = varied(series.grid(table, "optimizer", "batch_size", maximize), "row", "column")
    shapes = varied(series.grid(table, "depth", "width", maximize), "row", "column")
    tuned = series.best_rates(results, table)
    all_steps = series.steps_to_target(results)
    steps = varied(all_steps, "batch_size")
    fits = series.batch_scaling(steps)
    speed, found, all_found = series.throughput(results), series.progress(results), series.searched(table, maximize)
    columns = [name for name in series.SEARCHED if name in all_found]
    time, times = series.loss_and_time(results, table), series.timeline(results)
    weights = series.importance_spread(results.importance)
    noises = series.gradient_noise(results, table)
    try:
        expected, why = series.expected_search(results), "no trial has a value yet"
    except ValueError as error:
        expected, why = pd.DataFrame(), str(error)

    cells, workers = len(all_found), times["place"].nunique()
    where = "GPU (trials that share one share its row), and per worker without one" if times["gpu"].any() else "worker"
    what = "GPUs and workers" if times["gpu"].any() else "workers"
    shown_lines = "Each line is a cell" if cells <= MOST_LINES else f"{MOST_LINES} of {cells:,} cells, evenly by rank,"
    shown_workers = (
        f"One row per {where}" if workers <= MOST_WORKERS else f"The {MOST_WORKERS} busiest of {workers} {what}"
    )

    def isolations() -> Figure:
        rows = math.ceil(len(columns) / 3)
        figure = figures.figure(PAGE_MM, 8 + 58 * rows)
        panels = figure.subplots(rows, 3, sharey=True, squeeze=False).ravel()
        for ax, by in zip(panels, columns, strict=False):
            figures.isolation(all_found, ax, by, metric, unit)
        for place, ax in enumerate(panels):
            ax.set_visible(place < len(columns))
            ax.set_ylabel("")
        figure.supylabel(f"validation {metric}" + (f", {unit}" if unit else ""), fontsize=8)
        return figure

    drawn = rates.loc[rates["eligible"], "n"]
    seeds = seed_counts(curves["n"]), seed_counts(drawn), seed_counts(table["n"])
    drawings = [
        Exhibit(
            "regimes",
            "loss-by-regime",
            f"Validation {metric} by regime",
            f"The best cell of each regime at its tuned learning rate, against updates, training examples, epochs and "
            f"seconds of training of its whole stack of lanes (evaluation excluded). Line: {mean} of the validation "
            f"{metric}, always on the same split, over {seeds[0]}; {band_note(curves['n'])}. "
            f"The axes follow the lines: what scatters more may leave them."
            + (
                f" Faint: loss of the batches of one seed; dotted: the same smoothed, with a half-life of "
                f"{short(series.HALF_LIFE * shortest)} examples in every regime."
                if curves["batch_loss"].notna().any() and metric == "loss"
                else ""
            ),
            f"Four panels of validation {metric} along training, one line per regime: {listing(curves['regime'])}.",
            curves,
            regimes,
            none,
        ),
        Exhibit(
            "regimes",
            "noise-speed",
            "Noise against speed",
            f"The best cell of each optimizer and batch size at its tuned rate. Across: training examples until the "
            f"validation loss is down to {level}, halfway (on the log scale) from the initial to the best final loss "
            f"of the study; up: scatter of the log validation loss about its trend, late in training. Both: geometric "
            f"mean over {seeds[2]}; bars: 95% t intervals; hollow, at the right: a seed "
            f"never came so far. The axes follow the points: bars may leave them.",
            "Scatter plot of noise against speed, one point per optimizer and batch size, coloured by regime.",
            noise,
            single(lambda ax: figures.noise_against_speed(noise, ax)),
            none,
        ),
        Exhibit(
            "regimes",
            "gradient-noise",
            "Gradient noise scale along training",
            f"tr(Σ) / |G|², the batch size at which noise and signal of the gradient are equal, on a fixed subset of "
            f"the training split, for the best cell of each regime at its tuned rate over {seeds[0]}; band: pointwise "
            f"95% interval.",
            "Gradient noise scale against training examples, one line per regime.",
            noises,
            single(lambda ax: figures.noise_scale(noises, ax)),
            "not recorded; [recording] gradient_noise = true in the spec records it",
        ),
        Exhibit(
            "optimizers",
            "learning-rate-sensitivity",
            "Sensitivity to the learning rate",
            f"The best cell of each optimizer at every learning rate of its grid. Line: {mean} of the final validation "
            f"{metric} over {seeds[1]}; {band_note(rates['n'])}; ring: tuned rate; cross: a seed diverged there.",
            f"Final validation {metric} against learning rate, one line per optimizer: {listing(rates['optimizer'])}.",
            rates,
            single(lambda ax: figures.learning_rate_sensitivity(rates, ax, metric, unit), height=85),
            none,
        ),
        Exhibit(
            "optimizers",
            "performance-profile",
            "Performance profile",
            f"Share of the problems (width, depth and batch size at which several optimizers ran) that an optimizer "
            f"solves, that is brings to the target, within a multiple of the updates of the fastest; medians over "
            f"{seeds[2]}, each at its best rate; no band.",
            "Step lines: share of problems solved against the multiple of the fastest, one per optimizer.",
            varied(profile, "optimizer"),
            single(lambda ax: figures.performance_profiles(profile, ax)),
            "the workload names no target" if results.target is None else "no problem was solved that several tried",
        ),
        Exhibit(
            "batch size",
            "optimizer-batch-size",
            "Optimizer and batch size",
            f"Validation {metric} of the best cell over width and depth, at its tuned rate: {mean} over {seeds[2]}, in "
            f"brackets the 95% t interval. Yellow is best; grey: no value, with the reason.",
            f"Heat map of validation {metric}: rows are optimizers, columns batch sizes.",
            batches,
            heat(batches, "optimizer", "batch size", contours=False),
            "one optimizer at one batch size" if len(table) else "no trial has ended yet",
        ),
        Exhibit(
            "batch size",
            "rate-by-batch-size",
            "Sensitivity to the learning rate, by batch size",
            f"The best cell of {of_size} at each batch size. Line: {mean} of the final validation {metric} over "
            f"{seed_counts(seeds_by['batch_size'])}; {band_note(seeds_by['batch_size'])}; ring: tuned rate; "
            f"cross: a seed diverged there.",
            f"Final validation {metric} against learning rate, one line per batch size.",
            rates_by["batch_size"],
            single(lambda ax: figures.learning_rate_sensitivity(rates_by["batch_size"], ax, metric, unit)),
            "the best optimizer ran at one batch size only",
        ),
        Exhibit(
            "batch size",
            "tuned-rate",
            "Tuned learning rate against batch size",
            f"The best cell of each optimizer and batch size, tuned over {seeds[2]}. Bars reach halfway to the "
            f"neighbouring rates of the grid: the resolution of the answer, no confidence interval. Open: on the edge "
            f"of its grid. Guides: rates proportional to the batch size, and to its square root.",
            "Tuned learning rate against batch size, one line per optimizer.",
            varied(tuned, "batch_size"),
            single(lambda ax: figures.rate_against_batch_size(tuned, ax)),
            "one batch size only",
        ),
        Exhibit(
            "batch size",
            "steps-to-target",
            "Updates to the target",
            f"Until the validation {metric} reaches {'' if results.target is None else short(results.target)}, at the "
            f"cell and learning rate that need the fewest updates at each batch size. Points: medians over "
            f"{seed_counts(steps.groupby(['optimizer', 'batch_size'])['seed'].nunique())}; bars: range over seeds. "
            f"Curve: S = S_min (1 + B_crit / B), where it can be fitted; tick: critical batch size.",
            "Updates to the target against batch size, one line per optimizer, beside perfect scaling.",
            steps,
            single(lambda ax: figures.steps_against_batch_size(steps, fits, ax)),
            no_target if all_steps.empty else "the target was reached at one batch size only",
        ),
        Exhibit(
            "batch size",
            "throughput",
            "Throughput",
            "Training examples per second of a trial's whole stack of lanes, evaluation excluded, against the batch "
            "size; points: trials of every width and depth, line: their median by engine; no band.",
            "Examples per second against batch size, one line per engine.",
            speed,
            single(lambda ax: figures.throughput_against_batch_size(speed, ax)),
            "no trial ran with all its lanes to the end",
        ),
        Exhibit(
            "width and depth",
            "width-depth",
            "Width and depth",
            f"Validation {metric} of the best cell over optimizer and batch size, at its tuned rate: {mean} over "
            f"{seeds[2]}, in brackets the 95% t interval. Yellow is best; grey: no value, with the reason. Dashed: "
            f"equally many parameters, as named below.",
            f"Heat map of validation {metric}: rows are depths, columns widths.",
            shapes,
            heat(shapes, "depth", "width", contours=True),
            "one width and depth only" if len(table) else "no trial has ended yet",
        ),
        Exhibit(
            "width and depth",
            "rate-by-width",
            "Learning-rate shift with width",
            f"The best cell of {leader} at each width. Line: {mean} of the final validation {metric} over "
            f"{seed_counts(seeds_by['width'])}; {band_note(seeds_by['width'])}; ring: tuned rate; cross: a "
            f"seed diverged there.",
            f"Final validation {metric} against learning rate, one line per width.",
            rates_by["width"],
            single(lambda ax: figures.learning_rate_sensitivity(rates_by["width"], ax, metric, unit)),
            "the best optimizer ran at one width only",
        ),
        Exhibit(
            "search",
            "search-progress",
            "The search, trial by trial",
            f"Validation {metric} of each trial at its tuned rate ({mean} over its seeds) and the best so far; no "
            f"band. Cross: a trial without a value.",
            f"Validation {metric} of every trial in order, and the best so far.",
            found,
            single(lambda ax: figures.search_progress(found, ax, metric, unit), height=75),
            "no trial has ended yet",
        ),
        Exhibit(
            "search",
            "expected-best",
            "Expected best against budget",
            f"The validation {metric} to expect of the best of so many trials of an optimizer, drawn from those made "
            f"without replacement (unbiased); a trial without a value counts as the worst. No band.",
            f"Expected best validation {metric} against the number of trials, one line per optimizer.",
            expected,
            single(lambda ax: figures.expected_best_of(expected, ax, metric, unit), height=75),
            why,
        ),
        Exhibit(
            "search",
            "importance",
            "Importance of the hyperparameters",
            f"How much each decides whether a trial is among the best, as shares (PED-ANOVA, Watanabe et al. 2023); "
            f"bars: all trials, lines: 2.5 to 97.5 percentiles over "
            f"{counted(int(weights['n'].max()) if len(weights) else 0, 'bootstrap repeat')}.",
            "Bar chart of hyperparameter importances.",
            weights,
            single(lambda ax: figures.importance_bars(weights, ax), 110, 15 + 9 * max(2, len(weights))),
            "the study has not recorded it; it takes several completed trials",
        ),
        Exhibit(
            "search",
            "isolation",
            "Each hyperparameter by itself",
            f"Validation {metric} of every cell at its tuned rate against each hyperparameter that varied, the others "
            f"being whatever they were; dark: the best of each value. Each point is a {mean} over {seeds[2]}; no band.",
            f"Panels of validation {metric} against {', '.join(columns)}.",
            all_found if columns else all_found.head(0),
            isolations,
            none if all_found.empty else "nothing varied",
        ),
        Exhibit(
            "search",
            "parallel-coordinates",
            "All cells at once",
            f"{shown_lines} at its tuned rate; orange: the best tenth by validation {metric} ({mean} over "
            f"{seeds[2]}), the others from better (light) to worse (dark); no band.",
            f"Parallel coordinates of {', '.join(columns)} and validation {metric}.",
            all_found if len(columns) > 1 else all_found.head(0),
            single(lambda ax: figures.parallel_coordinates(all_found, ax, metric), PAGE_MM),
            none if all_found.empty else "fewer than two hyperparameters varied",
        ),
        Exhibit(
            "search",
            "loss-time",
            f"Validation {metric} against training time",
            f"Every completed cell at its tuned rate ({mean} over {seeds[2]}) against the seconds that its whole stack "
            f"of lanes trained; line: what no other cell beats in both; no band.",
            f"Scatter plot of validation {metric} against training time with its Pareto front.",
            time,
            single(lambda ax: figures.loss_against_time(time, ax, metric, unit)),
            "no cell has completed with a tuned rate",
        ),
        Exhibit(
            "ledger",
            "timeline",
            "Which GPU or worker did what when" if times["gpu"].any() else "Which worker did what when",
            f"{shown_workers}, one bar for each stay of a trial there, those of a confirmation too, coloured by "
            "outcome; gaps are waiting, or the time between sessions.",
            f"Timeline of the trials of {what}.",
            times,
            single(lambda ax: figures.trial_timeline(times, ax), PAGE_MM, 22 + 4.5 * min(MOST_WORKERS, workers)),
            "no trial has recorded when and where it ran",
        ),
    ]
    return sorted(drawings, key=lambda drawing: PARTS.index(drawing.part))


def with_legend(draw: Callable[[Axes], Any], width: float = 0.78 * PAGE_MM, height: float = 80.0) -> Figure:
    """A figure of one panel with its legend, if it needs one, at its right."""
    figure = figures.figure(width, height)
    ax = figure.subplots()
    draw(ax)
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper")
    return figure


def _heat_map_size(data: pd.DataFrame) -> Figure:
    rows, columns = data["row"].nunique(), data["column"].nunique()
    return figures.figure(min(PAGE_MM, max(COLUMN_MM, 45 + 24 * columns)), 24 + 11 * max(rows, 2))


def unit_of(results: Results) -> str:
    """What a loss is measured in, from provenance; an accuracy needs no word."""
    return str(table_of(results.provenance, "data").get("loss", "")) if results.metric == "loss" else ""


def write_file(path: Path, content: bytes) -> None:
    """Write a file at once or not at all, so that a reader never meets half a report."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        file.write(content)
    temporary = Path(file.name)
    temporary.chmod(0o644)  # temporary files are private, a report is to be read
    temporary.replace(path)
