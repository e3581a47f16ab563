"""Experiment 5 of the source report, its CNN on MNIST: the printed losses beside those that we trained.

Its studies, where INPUTS is raw (pixels from 0 to 1) or standardized:

    candidates-INPUTS      the optimizers and rates that are plausible
    first-epoch-INPUTS     those that train for the report's first epoch only
    unrefuted-INPUTS       those of these that fit it, trained to the end
    nearest-INPUTS         the candidates nearest to the printed losses again, on fresh seeds
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from analysis.figures import style
from analysis.figures.axes import log_axis
from analysis.figures.exhibit import with_legend
from analysis.reproduction import inference
from analysis.reproduction.claims import Measured, Truth, printed
from analysis.reproduction.inference import CANDIDATE, INPUTS, WINDOW, candidate_text, candidates, lanes_of
from analysis.reproduction.losses import beside, draw_beside
from analysis.reproduction.sizes import layer_table, shape_text, size_facts
from analysis.results import Results, records
from analysis.statistics import logit_interval
from analysis.text import estimate_text, seed_counts, short

ERRORS = 15
"""Images in the figure of errors."""


def mnist(runs: Mapping[str, Results], truth: Truth) -> Measured | None:
    """Experiment 5: the CNN; None before the nearest candidates have run again."""
    nearest = [run for name, run in runs.items() if name.startswith("nearest")]
    screened = [run for name, run in runs.items() if not name.startswith("nearest")]
    frames = {each.name: inference.losses(each) for each in screened}
    # The nearest were chosen before those that fit the first epoch trained on.
    first = [frame for name, frame in frames.items() if not name.startswith("unrefuted")]
    if not {f"nearest-{inputs}" for inputs, *_ in inference.kept(first)} <= runs.keys():
        return None
    run = Run(screened, nearest, pd.concat(frames.values()), truth["mnist"]())
    return Measured(run.facts(), run.figures(), run.tables(), [*screened, *nearest])


class Run:
    """The results of one run.

    screen and whole are `losses` of the studies of all candidates, and of those on fresh seeds; tried and final are
    their `candidates`. chosen is the row of `final` that is shown, the simplest of those that fit; frame, table and
    lanes are its losses, these beside the printed ones, and its lanes. screened are the lanes of all candidates.
    """

    def __init__(
        self, tried: Sequence[Results], whole: Sequence[Results], screen: pd.DataFrame, made: Mapping[str, Any]
    ) -> None:
        # Those that fit the first epoch trained again, further and on more seeds.
        self.screen = screen[screen["study"] == screen.groupby(CANDIDATE)["study"].transform("last")]
        self.whole = pd.concat([inference.losses(each) for each in whole])
        self.tried, self.final = candidates(self.screen), candidates(self.whole)
        order = self.final["optimizer"].map(inference.OPTIMIZERS.index)
        fitting = self.final.assign(order=order)[self.final["fits"]].sort_values(["order", "distance"])
        self.chosen = (self.final if fitting.empty else fitting).iloc[0]
        self.frame = of(self.whole, self.chosen)
        self.table = beside(self.frame, inference.printed_table(), WINDOW, inference.slack())
        self.lanes, study = next((own, each) for each in whole if len(own := of(lanes_of(each), self.chosen)))
        self.predictions = study.predictions.merge(self.lanes[["trial", "lane"]], on=["trial", "lane"])
        self.screened = pd.concat([lanes_of(each) for each in tried]).drop_duplicates([*CANDIDATE, "seed"], keep="last")
        self.images, layers = made, printed("mnist")["layers"]
        table = layer_table((1, 28, 28), layers)
        sizes = zip(table["channels"], table["height"], table["width"], made["layers"], strict=True)
        self.layers = table.assign(
            shape=[shape_text(size[: len(shape)]) for *size, (shape, _) in sizes],
            torch=[shape_text(shape) for shape, _ in made["layers"]],
            torch_parameters=[parameters for _, parameters in made["layers"]],
            report=[layer["shape"] for layer in layers],
        )

    def facts(self) -> dict[str, Any]:
        """The facts of all claims and captions."""
        images, top, table = self.images, self.chosen, self.table
        parts = inference.parts_of(table["printed"].to_numpy())
        plateau, fall = (table[parts == part] for part in (0, 1))
        wrong = errors(self.predictions)
        return {
            "rates": self.screen["learning_rate"].nunique(),
            "top": top.to_dict(),
            "name": candidate_text(top),
            "seeds": int(top["seeds"]),
            "first_seeds": int(self.tried["seeds"].iloc[0]),
            "screen_seeds": seed_counts(self.tried["seeds"]),
            "sizes_agree": bool(self.layers[["torch", "report"]].eq(self.layers["shape"], axis=0).all(axis=None)),
            "shapes": self.layers["shape"].to_list(),
            "parameters": int(self.layers["parameters"].sum()),
            "plateau": inside_facts(plateau, top["seeds"]),
            "fall": inside_facts(fall, top["seeds"]),
            "end": inside_facts(table.tail(1), top["seeds"]),
            "still": self.still(),
            "accuracy": estimate_text(logit_interval(self.lanes["test_accuracy"], len(images["test"])), "accuracy"),
            "test_examples": len(images["test"]),
            "labels": images["batch_labels"].tolist(),
            "wrong_always": int((wrong["wrong"] == wrong["lanes"]).sum()),
            "wrong_once": len(wrong),
            **self.inferred(),
            **self.best(),
            **size_facts(),
        }

    def still(self) -> int:
        """Seeds that are still on the plateau at the last of the printed losses that are."""
        level = inference.PLATEAU * self.table["printed"].iloc[0]
        last = self.table[self.table["printed"] > level].iloc[-1]
        own = self.frame[(self.frame["epoch"] == last["epoch"]) & (self.frame["place"] == last["place"])]["loss"]
        return int((own > level).sum())

    def inferred(self) -> dict[str, Any]:
        """Which candidates fit, which is nearest, which were given up early, and which were not although they fit."""
        fitting = self.final[self.final["fits"]]
        rates = fitting.set_index("optimizer")["learning_rate"].to_dict()
        pair = set(rates) == {"sgd", "momentum"} and len(fitting) == 2
        again = self.tried.set_index(CANDIDATE).index.isin(self.final.set_index(CANDIDATE).index)
        early = self.tried["points"] < self.tried["points"].max()
        adaptive = self.tried["optimizer"].isin(self.tried.loc[early, "optimizer"])
        return {
            "fitting": _names(fitting),
            "nearest": candidate_text(self.final.iloc[0]),
            # With a momentum of 0.9 a step counts ten times.
            "alike": pair and math.isclose(rates["sgd"], 10 * rates["momentum"], rel_tol=1e-3),
            "unrefuted": _names(self.tried[self.tried["fits"] & ~again]),
            "given_up": int(early.sum()),
            "adaptive": int(adaptive.sum()),
            "to_the_end": _names(self.tried[adaptive & ~early]),
        }

    def best(self) -> dict[str, Any]:
        """The candidate that is best on the validation split."""
        table = self.screened.groupby(CANDIDATE).agg(
            validation=("validation_accuracy", "mean"), n=("seed", "size"), scored=("validation_accuracy", "count")
        )
        best = table[table["n"] == table["scored"]].reset_index().sort_values("validation").iloc[-1]
        score = logit_interval(of(self.screened, best)["test_accuracy"], len(self.images["test"]))
        epochs = int(of(self.screen, best)["epoch"].max())
        return {"best": candidate_text(best), "best_epochs": epochs, "best_accuracy": estimate_text(score, "accuracy")}

    def tables(self) -> dict[str, pd.DataFrame]:
        """Layers, training, and the candidates before and after the fresh seeds."""
        training = self.table.assign(updates=printed("mnist")["every"] * self.table["place"])
        return {"layers": self.layers, "training": training, "tried": _shown(self.tried), "final": _shown(self.final)}

    def figures(self) -> dict[str, tuple[pd.DataFrame, Callable[[], Figure]]]:
        """The batch, augmentation, training, candidates, confusion and errors."""
        images, labels = self.images, self.images["batch_labels"].tolist()
        batch = pd.DataFrame({"place": range(len(labels)), "label": labels})
        kinds = images["augmented"].shape[1]
        titles = [f"label {label}" if kind == 0 else "" for label in labels for kind in range(kinds)]
        augmented = images["augmented"].reshape(-1, *images["augmented"].shape[2:])
        counts = confusion(self.predictions)
        long = [(row, column, value) for (row, column), value in np.ndenumerate(counts)]
        cells = pd.DataFrame(long, columns=["class", "predicted", "images"])
        some = errors(self.predictions).head(ERRORS)
        seen = [f"{t} seen as {p}" for t, p in zip(some["target"], some["predicted"], strict=True)]
        wrong = images["test"][some["example"].to_numpy()]
        return {
            "mnist-batch": (batch, lambda: image_grid(images["batch"], [f"label {label}" for label in labels], 1, 48)),
            "mnist-augmentation": (batch, lambda: image_grid(augmented, titles, len(labels), 110)),
            "mnist-training": (self.table, lambda: with_legend(self.draw_training, style.PAGE_MM, 85)),
            "mnist-candidates": (self.screen, lambda: draw_candidates(self.screen)),
            "mnist-confusion": (cells, lambda: draw_confusion(counts)),
            "mnist-errors": (some, lambda: image_grid(wrong, seen, 3, 90)),
        }

    def draw_training(self, ax: Axes) -> None:
        """The printed losses over those of the chosen candidate's seeds."""
        colour, _ = style.optimizer_look(str(self.chosen["optimizer"]))
        for _, own in self.frame.sort_values(WINDOW).groupby("seed"):
            ax.plot(updates(own), own["loss"], color=colour, alpha=0.3, linewidth=0.6)
        draw_beside(ax, updates(self.table), self.table, colour, f"ours, {self.chosen['seeds']} seeds")
        log_axis(ax, "y")
        every = printed("mnist")["every"]
        ax.set(xlabel=f"updates, those of the {every:,} averaged last", ylabel="training loss (nats)")


def updates(table: pd.DataFrame) -> pd.Series[Any]:
    """The updates after which the losses of a table with the columns `WINDOW` are printed."""
    report = printed("mnist")
    begun = int(report["epoch_updates"]) * (table["epoch"] - 1)
    return begun + int(report["every"]) * table["place"]


def of(frame: pd.DataFrame, candidate: Any) -> pd.DataFrame:
    """The rows of a candidate."""
    return frame.loc[np.logical_and.reduce([frame[name] == candidate[name] for name in CANDIDATE])]


def _names(table: pd.DataFrame) -> list[str]:
    return [candidate_text(row) for row in records(table)]


def inside_facts(rows: pd.DataFrame, seeds: int) -> dict[str, Any]:
    """How many printed losses lie within the range of the seeds, and whether they are as many as of a further seed.

    width is that of the widest range as a share of the printed losses' whole fall, in logs; first and last are rows.
    """
    inside, table = int(rows["inside"].sum()), inference.printed_table()["printed"]
    width = float(np.log(rows["largest"] / rows["least"]).max() / math.log(table.iloc[0] / table.iloc[-1]))
    spanned = inference.spanned(inside, len(rows), int(seeds))
    losses = {"printed": rows["printed"].to_list(), "mean": rows["estimate"].to_list()}
    ends = {"first": rows.iloc[0], "last": rows.iloc[-1]}
    return {"inside": inside, "of": len(rows), "spanned": spanned, "width": width} | losses | ends


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """`candidates` with their columns in words."""
    spans = {
        f"{part}_spanned": [f"{n} of {of[place]}" for n, of in zip(table[part], table["of"], strict=True)]
        for place, part in enumerate(("plateau", "fall", "tail"))
    }
    verdict = table["course"].where(~table["fits"], "fits")
    return table.assign(**spans, verdict=verdict, inputs=table["inputs"].map(INPUTS))


def confusion(predictions: pd.DataFrame, classes: int = 10) -> NDArray[np.float64]:
    """How many test examples of each class (row) are predicted as each class (column), a mean over lanes."""
    counts = np.zeros((classes, classes))
    np.add.at(counts, (predictions["target"].to_numpy(), predictions["predicted"].to_numpy()), 1)
    return counts / max(1, predictions.groupby(["trial", "lane"]).ngroups)


def errors(predictions: pd.DataFrame) -> pd.DataFrame:
    """The test examples that lanes misclassify, those of most lanes first, then the most confident.

    Columns example, target, predicted (by most of the lanes that err), wrong (lanes that err), lanes, probability (mean
    of their predictions).
    """
    wrong = predictions[predictions["target"] != predictions["predicted"]]
    frame = wrong.groupby("example").agg(
        target=("target", "first"),
        predicted=("predicted", lambda seen: seen.mode().iloc[0]),
        wrong=("predicted", "size"),
        probability=("probability", "mean"),
    )
    frame.insert(3, "lanes", predictions.groupby(["trial", "lane"]).ngroups)
    frame = frame.reset_index()
    return frame.sort_values(["wrong", "probability", "example"], ascending=[False, False, True], ignore_index=True)


def image_grid(images: NDArray[np.uint8], titles: Sequence[str], rows: int, height_mm: float) -> Figure:
    """Images (n, height, width) in rows, each under its title."""
    columns = math.ceil(len(images) / rows)
    drawn = style.figure(style.PAGE_MM, height_mm)
    panels = drawn.subplots(rows, columns, squeeze=False).ravel()
    for ax in panels:
        ax.set_axis_off()
    for ax, image, title in zip(panels, images, titles, strict=False):
        ax.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        ax.set_title(title, fontsize=7, pad=2)
    return drawn


def draw_candidates(frame: pd.DataFrame) -> Figure:
    """Every candidate: a panel per optimizer and inputs, a line per rate, the printed losses as dots."""
    shown = [(i, o) for i in INPUTS for o in inference.ordered(frame.loc[frame["inputs"] == i, "optimizer"])]
    columns = min(3, len(shown))
    drawn = style.figure(style.PAGE_MM, 10 + 52 * math.ceil(len(shown) / columns))
    panels = drawn.subplots(math.ceil(len(shown) / columns), columns, sharex=True, sharey=True, squeeze=False).ravel()
    rates = sorted(frame["learning_rate"].unique())
    theirs = inference.printed_table().merge(frame[WINDOW].drop_duplicates(), on=WINDOW)
    for ax in panels[len(shown) :]:
        ax.set_visible(False)
    for ax, (inputs, optimizer) in zip(panels, shown, strict=False):
        mine = frame[(frame["inputs"] == inputs) & (frame["optimizer"] == optimizer)]
        for place, rate in enumerate(rates):
            line = mine[mine["learning_rate"] == rate].groupby(WINDOW)["loss"].agg(["min", "max", "mean"]).reset_index()
            colour, _ = style.ordered_look(place, len(rates))
            ax.fill_between(updates(line), line["min"], line["max"], color=colour, alpha=0.2, linewidth=0)
            ax.plot(updates(line), line["mean"], color=colour, label=f"rate {short(rate)}")
        ax.plot(updates(theirs), theirs["printed"], "o", color="#000000", markersize=2.5, label="printed", zorder=4)
        log_axis(ax, "y")
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set_title(f"{optimizer}, inputs {INPUTS[inputs]}")
    drawn.supxlabel("updates", fontsize=8)
    drawn.supylabel("training loss (nats)", fontsize=8)
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=6)
    return drawn


def draw_confusion(counts: NDArray[np.float64]) -> Figure:
    """A confusion matrix; errors are coloured by their share of the row."""
    drawn = style.figure(0.6 * style.PAGE_MM, 0.6 * style.PAGE_MM)
    ax = drawn.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    shown = np.where(np.eye(len(counts), dtype=bool), np.nan, shares)
    most = max(0.01, float(np.nanmax(shown)))
    ax.imshow(shown, cmap="Oranges", vmin=0, vmax=1.4 * most)  # darker colours would leave the numbers illegible
    for (row, column), value in np.ndenumerate(counts):
        if value:
            text = f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
            # Cells stay light on dark paper, so the second colour must be one that `adaptive` keeps.
            colour = "#666666" if row == column else "#111111"
            ax.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
    ax.set_xticks(range(len(counts)))
    ax.set_yticks(range(len(counts)))
    ax.set(xlabel="class predicted", ylabel="class")
    ax.grid(visible=False)
    return drawn
