"""Experiment 5 of the source report, its CNN on MNIST: printed beside what `study.verify.reproduce_mnist` trained.

`mnist(out)` reads `out/mnist`:

    run.json                the data set, how losses are averaged, and which of the folders below belong to the run
    network.json            the network's layers as torch made them
    images.npz              a batch, the same augmented, and the test images
    candidates-INPUTS/      results folders: the optimizers and rates that are plausible
    first-epoch-INPUTS/     those of them that are given up after the report's first epoch
    unrefuted-INPUTS/       those of these that this has not refuted, to the end
    nearest-INPUTS/         the candidates nearest to the printed losses again, on fresh seeds

INPUTS is raw (pixels from 0 to 1) or standardized.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from analysis import figures
from analysis.exhibits import Exhibit
from analysis.figures import PAGE_MM, optimizer_look
from analysis.reproduction.inference import (
    CANDIDATE,
    KEPT,
    NEAR,
    OPTIMIZERS,
    PLATEAU,
    candidate_text,
    candidates,
    lanes_of,
    losses,
    numbers,
    ordered,
    parts_of,
    printed_table,
    spanned,
    training_table,
)
from analysis.reproduction.section import Claim, Section, Table, Verdict, drawing, told_of_runs
from analysis.results import load
from analysis.statistics import Interval, logit_interval
from analysis.wording import interval_text, metric_text, seed_counts, short

INPUTS = {"raw": "0 to 1", "standardized": "standardized"}


ERRORS = 15


def output_size(size: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """The report's formula, (size - kernel + 2 padding) / stride + 1, rounded down; in pixels."""
    return (size - kernel + 2 * padding) // stride + 1


def layer_table(in_shape: Sequence[int], layers: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Shapes, parameters and multiplications of a CNN, by the formula, layer by layer.

    Args:
        in_shape: (channels, height, width) of an image.
        layers: in order; `kind` is convolution, pooling or dense. The first two have kernel, stride and padding, a
            convolution and a dense layer `out`: channels or features.

    Returns:
        One row per layer: layer, channels, height, width (1 of a dense layer), parameters, multiplications of one
        forward pass of one image.
    """
    channels, height, width = in_shape
    rows, counts = [], dict.fromkeys(("convolution", "pooling", "dense"), 0)
    for layer in layers:
        kind = layer["kind"]
        counts[kind] += 1
        parameters = multiplications = 0
        if kind == "dense":
            inputs, channels, height, width = channels * height * width, layer["out"], 1, 1
            multiplications, parameters = inputs * channels, inputs * channels + channels
        else:
            height, width = (
                output_size(n, layer["kernel"], layer["stride"], layer["padding"]) for n in (height, width)
            )
            if kind == "convolution":
                weights = layer["out"] * channels * layer["kernel"] ** 2
                channels = layer["out"]
                multiplications, parameters = weights * height * width, weights + channels
        rows.append(
            {
                "layer": f"{kind} {counts[kind]}",
                "channels": channels,
                "height": height,
                "width": width,
                "parameters": parameters,
                "multiplications": multiplications,
            }
        )
    return pd.DataFrame(rows)


def report_layers() -> list[dict[str, Any]]:
    """The report's network as `layer_table` takes it: its filters without padding, its pooling 2x2."""
    found = []
    for layer in numbers()["layers"]:
        kind = layer["layer"].split()[0]
        kernel = numbers()["example_volume"]["filter"] if kind == "convolution" else 2
        found.append(
            {
                "kind": kind,
                "out": layer["shape"][0],
                "kernel": kernel,
                "stride": kernel if kind == "pooling" else 1,
                "padding": 0,
            }
        )
    return found


def arithmetic_claims() -> list[Claim]:
    """What the report says of sizes, by its own formula: no data have a part in it."""
    volume, colour = numbers()["example_volume"], numbers()["colour_inputs"]
    without = output_size(volume["input"], volume["filter"])
    padding = next(
        p for p in range(volume["filter"]) if output_size(volume["input"], volume["filter"], 1, p) == volume["output"]
    )
    inputs = colour["side"] ** 2 * colour["channels"]
    return [
        Claim(
            f"A layer of {volume['filter']}x{volume['filter']} filters may keep the height and width of its input",
            f"{volume['output']}x{volume['output']}",
            f"{without}x{without} without padding, as in its own network; with a padding of {padding} it does",
            "agrees",
            "where the volume is described no padding is, but section 2.1 names padding as the means",
        ),
        Claim(
            f"A {colour['side']}x{colour['side']} picture in colour has so many inputs",
            f"{colour['inputs']:,}",
            f"{inputs:,}",
            "agrees" if inputs == colour["inputs"] else "differs",
            f"{colour['side']} x {colour['side']} x {colour['channels']}",
        ),
        dense_claim(),
    ]


def dense_claim() -> Claim:
    """Whether fully connected layers cost more than convolutions, at the sizes that the report names."""
    told, dearer, larger, in_place = [], [], [], []
    network, side, channels = report_layers(), numbers()["example_volume"]["input"], numbers()["colour_inputs"]
    for shape in ((1, side, side), (channels["channels"], channels["side"], channels["side"])):
        ours = layer_table(shape, network)
        flat = layer_table(shape, [layer for layer in network if layer["kind"] == "dense"])
        (weights, products), (dense, theirs) = (
            (int(table["parameters"].sum()), int(table["multiplications"].sum())) for table in (ours, flat)
        )
        larger.append(dense > weights)
        dearer.append(theirs > products)
        size = "x".join(map(str, [*shape[1:], shape[0]]))
        told.append(
            f"{size}: {dense:,} parameters against {weights:,}, {theirs:,} multiplications an image against "
            f"{products:,}"
        )
        first = ours.iloc[0]
        outputs = int(first["channels"] * first["height"] * first["width"])
        in_place.append(math.prod(shape) * outputs / first["multiplications"])
    why = (
        f"more parameters at {sum(larger)} of these {len(told)} sizes, more multiplications at {sum(dearer)}; asked "
        "for: both at both. A filter's few weights are used at every place, so fewer parameters are not less "
        "arithmetic. A fully connected layer of as many outputs as the first convolution would take "
        f"{' and '.join(f'{share:,.0f}' for share in in_place)} times its multiplications"
    )
    return Claim(
        "Fully connected layers do not scale to images, and cost far more",
        "no number",
        "the same head without convolutions. " + "; ".join(told),
        "agrees" if all(larger) and all(dearer) else "differs",
        why,
    )


def confusion(predictions: pd.DataFrame, classes: int = 10) -> NDArray[np.float64]:
    """How many test examples of each class are seen as which, a mean over lanes.

    Args:
        predictions: rows of `results.PREDICTIONS`.
        classes: how many there are.

    Returns:
        (classes, classes): a row per class, a column per class predicted.
    """
    counts = np.zeros((classes, classes))
    np.add.at(counts, (predictions["target"].to_numpy(), predictions["predicted"].to_numpy()), 1)
    return counts / max(1, predictions.groupby(["trial", "lane"]).ngroups)


def errors(predictions: pd.DataFrame) -> pd.DataFrame:
    """The test examples that most lanes see wrongly, those first that they are surest of.

    Args:
        predictions: rows of `results.PREDICTIONS`.

    Returns:
        One row per example with an error: example, target, predicted (by most of the lanes that err), wrong (lanes
        that err), lanes, probability (mean of what they predict).
    """
    lanes = predictions.groupby(["trial", "lane"]).ngroups
    wrong = predictions[predictions["target"] != predictions["predicted"]]
    grouped = wrong.groupby("example")
    frame = grouped.agg(
        target=("target", "first"),
        predicted=("predicted", lambda seen: seen.mode().iloc[0]),
        wrong=("predicted", "size"),
        probability=("probability", "mean"),
    ).reset_index()
    frame.insert(4, "lanes", lanes)
    order = frame.sort_values(["wrong", "probability", "example"], ascending=[False, False, True])
    return order.reset_index(drop=True)


def image_grid(images: NDArray[np.uint8], titles: Sequence[str], rows: int, height_mm: float) -> Figure:
    """Images in rows, each under its title.

    Args:
        images: (n, height, width) bytes.
        titles: n of them.
        rows: of the grid.
        height_mm: of the figure.
    """
    columns = math.ceil(len(images) / rows)
    drawn = figures.figure(PAGE_MM, height_mm)
    panels = drawn.subplots(rows, columns, squeeze=False).ravel()
    for ax in panels:
        ax.set_axis_off()
    for ax, image, title in zip(panels, images, titles, strict=False):
        ax.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        ax.set_title(title, fontsize=7, pad=2)
    return drawn


def draw_training(table: pd.DataFrame, frame: pd.DataFrame, ax: Axes, every: int, per_epoch: int, label: str) -> Axes:
    """The printed losses over those of a candidate's seeds.

    Args:
        table: `training_table`.
        frame: `losses` of the candidate.
        ax: where to draw.
        every: updates in a window.
        per_epoch: updates in an epoch.
        label: what the candidate is.
    """
    where = per_epoch * (table["epoch"] - 1) + every * table["place"]
    colour, _ = optimizer_look(str(frame["optimizer"].iloc[0]))
    for _, own in frame.sort_values(["epoch", "place"]).groupby("seed"):
        ax.plot(where, own["loss"], color=colour, alpha=0.3, linewidth=0.6)
    ax.fill_between(where, table["least"], table["largest"], color=colour, alpha=0.15, linewidth=0)
    ax.plot(where, table["estimate"], color=colour, label=f"{label}, {table['n'].iloc[0]} seeds")
    ax.plot(where, table["printed"], "o", color="#000000", markersize=3.5, label="printed in the report", zorder=4)
    ax.set_yscale("log")
    _loss_ticks(ax)
    ax.set_xlabel(f"updates, those of the {every:,} averaged last")
    ax.set_ylabel("training loss (nats)")
    return ax


def draw_candidates(frame: pd.DataFrame, every: int, per_epoch: int) -> Figure:
    """Every candidate: a panel per optimizer and inputs, a line per rate, the printed losses as dots."""
    shown = [(i, o) for i in INPUTS for o in ordered(frame.loc[frame["inputs"] == i, "optimizer"])]
    columns = min(3, len(shown))
    drawn = figures.figure(PAGE_MM, 10 + 52 * math.ceil(len(shown) / columns))
    panels = drawn.subplots(math.ceil(len(shown) / columns), columns, sharex=True, sharey=True, squeeze=False).ravel()
    rates = sorted(frame["learning_rate"].unique())
    theirs = printed_table().merge(frame[["epoch", "place"]].drop_duplicates(), on=["epoch", "place"])
    for ax in panels[len(shown) :]:
        ax.set_visible(False)
    for ax, (inputs, optimizer) in zip(panels, shown, strict=False):
        mine = frame[(frame["inputs"] == inputs) & (frame["optimizer"] == optimizer)]
        for place, rate in enumerate(rates):
            own = mine[mine["learning_rate"] == rate].groupby(["epoch", "place"])["loss"]
            colour, _ = figures.ordered_look(place, len(rates))
            where = [per_epoch * (epoch - 1) + every * at for epoch, at in own.mean().index]
            ax.fill_between(where, own.min(), own.max(), color=colour, alpha=0.2, linewidth=0)
            ax.plot(where, own.mean(), color=colour, label=f"rate {short(rate)}")
        dots = per_epoch * (theirs["epoch"] - 1) + every * theirs["place"]
        ax.plot(dots, theirs["loss"], "o", color="#000000", markersize=2.5, label="printed", zorder=4)
        ax.set_yscale("log")
        _loss_ticks(ax)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set_title(f"{optimizer}, inputs {INPUTS[inputs]}")
    drawn.supxlabel("updates", fontsize=8)
    drawn.supylabel("training loss (nats)", fontsize=8)
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=6)
    return drawn


def draw_confusion(counts: NDArray[np.float64], ax: Axes) -> Axes:
    """A confusion matrix: the right ones in grey figures, the colour of the others by their share of the row."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    shown = np.where(np.eye(len(counts), dtype=bool), np.nan, shares)
    most = max(0.01, float(np.nanmax(shown)))
    ax.imshow(shown, cmap="Oranges", vmin=0, vmax=1.4 * most)  # its darkest colours would leave no figure legible
    for (row, column), value in np.ndenumerate(counts):
        if value:
            text = f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
            # On dark paper the cells stay light; the second colour is one that does not turn.
            colour = "#666666" if row == column else "#111111"
            ax.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
    ax.set_xticks(range(len(counts)))
    ax.set_yticks(range(len(counts)))
    ax.set_xlabel("class predicted")
    ax.set_ylabel("class")
    ax.grid(visible=False)
    return ax


def _loss_ticks(ax: Axes) -> None:
    ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2) if tick >= ax.get_ylim()[0]]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()


def is_whole(out: Path) -> bool:
    """Whether the experiment has been run in a reproduction's folder to its end."""
    return (out / "mnist" / "run.json").is_file()


def mnist(out: Path) -> Section:
    """The section, from the files that `run_mnist` wrote below `out`; see the module.

    Raises:
        ResultsError: if a results folder cannot be read.
    """
    return _Experiment(out / "mnist").section()


class _Experiment:
    """The files of one run, read; each method makes a part of the section."""

    def __init__(self, folder: Path) -> None:
        self.run: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        self.network: dict[str, Any] = json.loads((folder / "network.json").read_text(encoding="utf-8"))
        with np.load(folder / "images.npz") as images:
            self.images = dict(images)
        self.every, self.per_epoch = int(self.run["every"]), int(self.run["epoch_updates"])
        self.real = self.run["data"] == "mnist"
        tried, whole = ([load(folder / name) for name in self.run[kind]] for kind in ("screened", "nearest"))
        self.studies = [*tried, *whole]
        screen = pd.concat([losses(each, self.every, self.per_epoch) for each in tried])
        # Those that were not refuted at first trained again, further and on more seeds.
        self.screen = screen[screen["study"] == screen.groupby(CANDIDATE)["study"].transform("last")]
        self.whole = pd.concat([losses(each, self.every, self.per_epoch) for each in whole])
        self.tried, self.final = candidates(self.screen), candidates(self.whole)
        # The studies of the nearest hold every pair of the kept optimizers and rates. Of those that fit, the simplest.
        order = self.final["optimizer"].map(OPTIMIZERS.index)
        fitting = self.final.assign(order=order)[self.final["fits"]].sort_values(["order", "distance"])
        chosen = self.chosen = (self.final if fitting.empty else fitting).iloc[0]
        self.frame = self._of(self.whole, chosen)
        self.table = training_table(self.frame)
        # One of these studies has it.
        self.lanes, study = next((own, each) for each in whole if len(own := self._of(lanes_of(each), chosen)))
        self.predictions = study.predictions.merge(self.lanes[["trial", "lane"]], on=["trial", "lane"])
        self.screened = pd.concat([lanes_of(each) for each in tried]).drop_duplicates([*CANDIDATE, "seed"], keep="last")

    @staticmethod
    def _of(frame: pd.DataFrame, row: Any) -> pd.DataFrame:
        same = [frame[name] == row[name] for name in CANDIDATE]
        return frame.loc[np.logical_and.reduce(same)]

    def accuracy(self) -> Interval:
        """Test accuracy of the chosen candidate over seeds."""
        return logit_interval(self.lanes["test_accuracy"], self.test_examples)

    @property
    def test_examples(self) -> int:
        """Examples in the test split."""
        return len(self.images["test"])

    def section(self) -> Section:
        """All parts together."""
        return Section(
            "mnist",
            "A convolutional network on MNIST" if self.real else "A convolutional network on digits, not MNIST",
            self.notes(),
            self.claims(),
            self.drawings(),
            self.tables(),
            **told_of_runs("mnist", self.studies),
        )

    def notes(self) -> list[str]:
        """What to know first: how the optimizer is inferred, what is unknown, and what differs without MNIST."""
        found = []
        if not self.real:
            found.append(
                f"This machine has no MNIST ({self.run['why']}), so all of this is made on scikit-learn's 8x8 digits "
                "instead, with 3x3 filters and as many updates as MNIST takes. None of the report's numbers can be "
                "checked on it; it shows only how the experiment goes."
            )
        rest, top = self.per_epoch % self.every, self.chosen
        curves = int(top["seeds"]) + 1
        found += [
            "The report shows neither its optimizer nor its transforms. Gradient descent, without and with momentum, "
            f"was trained at {self.screen['learning_rate'].nunique()} rates, on inputs from 0 to 1, as the report's "
            f"pictures show them, and on standardized ones; {self.given_up()}. The {KEPT} candidates nearest to the "
            f"printed losses were trained again on {top['seeds']} fresh seeds.",
            "A candidate fits if, of the printed curve and those of its seeds, the printed one is not the furthest "
            f"from its nearest ({curves} curves, so one that is right is refused at most once in {curves}), if a seed "
            f"runs within a factor of {math.exp(NEAR):.2f} of it in the root mean square, and if the printed plateau "
            "and fall lie between the least and the largest seed's as often as a further seed's would. "
            + self.inferred(),
            f"The last {rest:,} of an epoch's {self.per_epoch:,} updates, {rest / self.per_epoch:.1%}, are in no "
            f"number that the report prints: it prints after every {self.every:,} and begins anew with each epoch. "
            "Each number is a mean over batches before their updates, so it lags behind, and of training images only.",
        ]
        return found

    def claims(self) -> list[Claim]:
        """The report's claims beside ours."""
        table, last, accuracy = self.table, self.table.iloc[-1], self.accuracy()
        parts = parts_of(table["printed"].to_numpy())
        plateau, fall = table[parts == 0], table[parts == 1]
        top = self.chosen
        name = candidate_text(top)
        unchecked = "MNIST is not here" if not self.real else ""

        def row_text(row: Any) -> str:
            return (
                f"{row['estimate']:.3f} [{row['low']:.3f}, {row['high']:.3f}], seeds {row['least']:.3f} to "
                f"{row['largest']:.3f}"
            )

        def judged(good: bool) -> Verdict:
            return "not checked" if unchecked else "agrees" if good else "differs"

        layers = self.layers()
        same = bool((layers["shape"] == layers["report"]).all()) if self.real else False
        torch_same = bool((layers["shape"] == layers["torch"]).all())
        found = [
            Claim(
                "The sizes that the report writes beside its layers",
                ", ".join(_shape_text(layer["shape"]) for layer in numbers()["layers"][:4]),
                ", ".join(layers["shape"].head(4)),
                judged(same and torch_same),
                f"{unchecked}; by the formula and by torch's own forward pass; {self.parameters():,} parameters".lstrip(
                    "; "
                ),
            ),
            Claim(
                "For the first epoch the loss hardly moves",
                f"{plateau['printed'].iloc[0]:.3f} to {plateau['printed'].iloc[-1]:.3f}",
                f"{row_text(plateau.iloc[0])}; then {row_text(plateau.iloc[-1])}",
                # A range that wide spans much: the seeds themselves have to stay.
                judged(
                    spanned(plateau["inside"].sum(), len(plateau), top["seeds"]) and 2 * self.still() >= top["seeds"]
                ),
                unchecked
                or f"{plateau['inside'].sum()} of {len(plateau)} printed losses within the seeds' range. {self.slow()}"
                f". Asked for: as many within as of a further seed, and half of the seeds still on it; {name}",
            ),
        ]
        if len(fall):
            found.append(
                Claim(
                    "Then it falls",
                    ", ".join(f"{value:.3f}" for value in fall["printed"]),
                    ", ".join(f"{value:.3f}" for value in fall["estimate"])
                    + f" on average; at the first, {row_text(fall.iloc[0])}",
                    judged(spanned(fall["inside"].sum(), len(fall), top["seeds"])),
                    unchecked or f"{fall['inside'].sum()} of {len(fall)} within the seeds' range",
                )
            )
        found += [
            Claim(
                "Three epochs lower the loss by much",
                f"{last['printed']:.3f}",
                row_text(last),
                judged(bool(last["inside"])),
                unchecked or f"it is {'' if last['inside'] else 'not '}within the range of the seeds. {self.faster()}",
            ),
            Claim(
                "The optimizer (the page that shows it is missing)",
                "not shown",
                f"{name}: {top['plateau']} of {top['of'][0]} on the plateau and {top['fall']} of {top['of'][1]} in the "
                f"fall spanned, p = {short(top['p'])}",
                "not checked",
                unchecked or f"there is nothing to agree with; inferred. {self.inferred()}",
            ),
            Claim(
                "How good the network is on images that it has not seen",
                "never measured",
                f"test accuracy {metric_text(accuracy.estimate, 'accuracy')} "
                f"{interval_text(accuracy.low, accuracy.high, accuracy.n, 'accuracy')}",
                "not checked",
                f"there is no number to compare; {self.test_examples:,} images, {accuracy.n} seeds, 95% t interval on "
                "the log-odds scale",
            ),
            Claim(
                "Transforms of the images enlarge the data",
                "not shown which",
                "shown below, not trained with",
                "not checked",
                "the code that imports and transforms the data is not in the report",
            ),
        ]
        return found + arithmetic_claims()

    def still(self) -> int:
        """Seeds that are still on the plateau at the last of the printed losses that are."""
        level = PLATEAU * self.table["printed"].iloc[0]
        last = self.table[self.table["printed"] > level].iloc[-1]
        own = self.frame[(self.frame["epoch"] == last["epoch"]) & (self.frame["place"] == last["place"])]["loss"]
        return int((own > level).sum())

    def slow(self) -> str:
        """How many seeds are as slow as the report's run."""
        still, seeds = self.still(), int(self.chosen["seeds"])
        among = "" if 2 * still >= seeds else ", so the report's was among the slow ones"
        return f"At the last of them {still} of {seeds} seeds are still on the plateau{among}"

    def inferred(self) -> str:
        """What the candidates' table says, in a sentence or two."""
        fitting = [candidate_text(row) for _, row in self.final[self.final["fits"]].iterrows()]
        nearest = candidate_text(self.final.iloc[0])
        if not fitting:
            return f"No candidate fits by it; nearest is {nearest}."
        if len(fitting) == 1:
            return f"Only {fitting[0]} fits by it." + (f" Nearest, though, is {nearest}." * (fitting[0] != nearest))
        told = f"{' and '.join(fitting)} fit by it, and the printed losses cannot tell them apart"
        if self.alike(self.final[self.final["fits"]]):
            told += ": with a momentum of 0.9 a step counts ten times, so a tenth of the rate does the same"
        return f"{told}. The simpler is shown.{self.unrefuted()}"

    def unrefuted(self) -> str:
        """Those that were not trained again although the seeds and epochs that they had do not refute them."""
        again = self.final.set_index(CANDIDATE).index
        left = self.tried[self.tried["fits"] & ~self.tried.set_index(CANDIDATE).index.isin(again)]
        if left.empty:
            return ""
        names = ", ".join(candidate_text(row) for _, row in left.iterrows())
        return f" Further off, but not refuted by the few seeds and epochs that they had: {names}."

    @staticmethod
    def alike(fitting: pd.DataFrame) -> bool:
        """Whether these are gradient descent at a rate, and with momentum at a tenth of it."""
        rates = fitting.set_index("optimizer")["learning_rate"].to_dict()
        pair = set(rates) == {"sgd", "momentum"} and len(fitting) == 2
        return pair and math.isclose(rates["sgd"], 10 * rates["momentum"], rel_tol=1e-3)

    def given_up(self) -> str:
        """How those were off that did not train for all epochs, and which of their kind did."""
        early = self.tried["points"] < self.tried["points"].max()
        adaptive = self.tried["optimizer"].isin(self.tried.loc[early, "optimizer"])
        told = (
            "the other optimizers that it names at the same rates, on inputs from 0 to 1 alone, since they divide by "
            f"the gradient's size; {early.sum()} of these {adaptive.sum()} were given up after the first epoch, which "
            "they do not fit"
        )
        left = self.tried[adaptive & ~early]
        if len(left):
            names = " and ".join(f"{row['optimizer']} at {short(row['learning_rate'])}" for _, row in left.iterrows())
            told += f", and {names} trained to the end on {left['seeds'].iloc[0]} seeds"
        return told

    def faster(self) -> str:
        """The candidate that is best on the validation split, beside the chosen one."""
        table = self.screened.groupby(CANDIDATE).agg(
            validation=("validation_accuracy", "mean"), n=("seed", "size"), there=("validation_accuracy", "count")
        )
        best = table[table["n"] == table["there"]].reset_index().sort_values("validation").iloc[-1]
        epochs = int(self._of(self.screen, best)["epoch"].max())
        own = self._of(self.screened, best)["test_accuracy"]
        score, ours = logit_interval(own, self.test_examples), self.accuracy()
        return (
            f"But {candidate_text(best)} has a test accuracy of {metric_text(score.estimate, 'accuracy')} "
            f"{interval_text(score.low, score.high, score.n, 'accuracy')} after {epochs} of them, this one "
            f"{metric_text(ours.estimate, 'accuracy')}"
        )

    def foreign(self) -> str:
        """That the data are others, where they are."""
        return "" if self.real else " Ours are of the digits, so nothing is to agree."

    def layers(self) -> pd.DataFrame:
        """`layer_table` of the network, with shapes as text, torch's and the report's beside them."""
        table = layer_table(self.network["in_shape"], self.network["layers"])
        shapes = [
            _shape_text(
                [row["channels"], row["height"], row["width"]] if "dense" not in row["layer"] else [row["channels"]]
            )
            for row in table.to_dict("records")
        ]
        table = table.assign(
            shape=shapes,
            torch=[_shape_text(layer["shape"]) for layer in self.network["layers"]],
            torch_parameters=[layer["parameters"] for layer in self.network["layers"]],
        )
        report = {layer["layer"]: _shape_text(layer["shape"]) for layer in numbers()["layers"]}
        return table.assign(report=table["layer"].map(report).fillna("") if self.real else "")

    def parameters(self) -> int:
        """Parameters of the network, by the formula."""
        return int(self.layers()["parameters"].sum())

    def tables(self) -> list[Table]:
        """The network's layers, the printed losses beside ours, and the candidates."""
        layers = self.layers()
        shown = ["layer", "shape", "report", "torch", "parameters", "torch_parameters", "multiplications"]
        total = dict.fromkeys(shown, "") | {"layer": "all"} | {name: layers[name].sum() for name in shown[4:]}
        layers = pd.concat([layers[shown], pd.DataFrame([total])], ignore_index=True)
        names = ["layer", "output, by the formula", "in the report", "by torch", "parameters", "by torch, parameters"]
        layers.columns = pd.Index([*names, "multiplications per image"])
        found = self.table
        training = pd.DataFrame(
            {
                "epoch": found["epoch"],
                "updates": self.every * found["place"],
                "printed": [f"{value:.3f}" for value in found["printed"]],
                "ours (geometric mean)": [f"{value:.3f}" for value in found["estimate"]],
                "95% interval of the mean": [
                    f"[{low:.3f}, {high:.3f}]" for low, high in zip(found["low"], found["high"], strict=True)
                ],
                "range of the seeds": [
                    f"{low:.3f} to {high:.3f}" for low, high in zip(found["least"], found["largest"], strict=True)
                ],
                "printed lies within": ["yes" if inside else "no" for inside in found["inside"]],
            }
        )
        n, foreign = int(self.chosen["seeds"]), self.foreign()
        return [
            Table.of(
                "Layers, shapes and parameters",
                "Output sizes by the report's formula, (H - F + 2P) / S + 1, beside its own comments and what torch's "
                "forward pass gives.",
                layers,
            ),
            Table.of(
                "The training table",
                f"Mean loss of the last {self.every:,} batches, as the report prints it, beside that of "
                f"{candidate_text(self.chosen)} over {n} seeds." + foreign,
                training,
            ),
            Table.of(
                "Candidates",
                "Distance: root mean square of the log of printed loss over the seeds' geometric mean, at as many of "
                f"the printed losses as the candidate trained for; then from the nearest seed. The {KEPT} nearest "
                f"were trained again; {int(self.tried['seeds'].iloc[0])} seeds judge no further.",
                self._shown(self.tried, judged=False),
            ),
            Table.of(
                "The nearest, and their neighbours, on fresh seeds",
                "The same, and how far a seed lies from its nearest, at most. At each printed loss, a further seed's "
                f"lies within the range of {n} with probability {(n - 1) / (n + 1):.0%}.",
                self._shown(self.final, judged=True),
            ),
        ]

    @staticmethod
    def _shown(table: pd.DataFrame, *, judged: bool) -> pd.DataFrame:
        shown = pd.DataFrame(
            {
                "optimizer": table["optimizer"],
                "learning rate": table["learning_rate"].map(short),
                "inputs": table["inputs"].map(INPUTS),
                "seeds": table["seeds"],
                "printed losses": table["points"],
                "distance": table["distance"].map(short),
                "from the nearest seed": table["nearest"].map(short),
                "a seed from its nearest": table["others"].map(short),
                "plateau spanned": [f"{n} of {of[0]}" for n, of in zip(table["plateau"], table["of"], strict=True)],
                "fall spanned": [f"{n} of {of[1]}" for n, of in zip(table["fall"], table["of"], strict=True)],
                "then spanned": [f"{n} of {of[2]}" for n, of in zip(table["tail"], table["of"], strict=True)],
                "p": table["p"].map(short),
                "verdict": [
                    "fits" if good else course for good, course in zip(table["fits"], table["course"], strict=True)
                ],
            }
        )
        if judged:
            return shown
        return shown.drop(columns=["fall spanned", "then spanned", "p", "verdict"]).assign(course=table["course"])

    def drawings(self) -> list[Exhibit]:
        """The batch, augmentation, training, candidates, confusion and errors."""
        images, every = self.images, self.every
        labels = images["batch_labels"].tolist()
        what = "MNIST" if self.real else "the digits"
        batch = pd.DataFrame({"place": range(len(labels)), "label": labels})
        kinds = images["augmented"].shape[1]
        titles = [f"label {label}" if kind == 0 else "" for label in labels for kind in range(kinds)]
        augmented = images["augmented"].reshape(-1, *images["augmented"].shape[2:])
        ways = self.run["augment"]
        counts = confusion(self.predictions)
        wrong = errors(self.predictions)
        some = wrong.head(ERRORS)
        top = self.chosen

        def training() -> Figure:
            drawn = figures.figure(0.78 * PAGE_MM, 85)
            ax = drawn.subplots()
            draw_training(self.table, self.frame, ax, every, self.per_epoch, candidate_text(top))
            drawn.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=1)
            return drawn

        def matrix() -> Figure:
            drawn = figures.figure(0.6 * PAGE_MM, 0.6 * PAGE_MM)
            draw_confusion(counts, drawn.subplots())
            return drawn

        names = [f"{t} seen as {p}" for t, p in zip(some["target"], some["predicted"], strict=True)]
        long = pd.DataFrame(
            [(row, column, counts[row, column]) for row in range(len(counts)) for column in range(len(counts))],
            columns=["class", "predicted", "images"],
        )
        seeds = f"{top['seeds']} seeds"
        return [
            drawing(
                "mnist-batch",
                "A batch of images",
                f"The first {len(labels)} training images of {what} that seed 0 sees, each under its label. The "
                f"report's have the labels {', '.join(map(str, numbers()['labels']))}; which images these are depends "
                "on a shuffle that it does not fix.",
                f"Handwritten digits in a row, labelled {', '.join(map(str, labels))}.",
                batch,
                partial(image_grid, images["batch"], [f"label {label}" for label in labels], 1, 48),
            ),
            drawing(
                "mnist-augmentation",
                "The same images, augmented",
                f"Left as they are, then {kinds - 1} times each: rotated by at most {ways['rotate']:g} degrees and "
                f"shifted by at most {ways['translate']:.0%} of height and width. The report describes such transforms "
                "and does not show its own; the runs here train without. A reflection, its example for dogs, would "
                "make other signs of digits.",
                f"{len(labels)} rows of digits: the image, then {kinds - 1} rotated and shifted copies.",
                batch,
                partial(image_grid, augmented, titles, len(labels), 110),
            ),
            drawing(
                "mnist-training",
                "The training loss, as printed and again",
                f"Means over {every:,} batches, each before its update. Dots: the report's numbers. Thick line: "
                f"geometric mean of {candidate_text(top)} over {seeds}; thin lines: each seed; band: from the least to "
                "the largest." + self.foreign(),
                "Training loss against updates: the report's dots over a bundle of lines.",
                self.table,
                training,
            ),
            drawing(
                "mnist-candidates",
                "Which optimizer was it?",
                f"Means over {every:,} batches, per optimizer and inputs; lines: means of "
                f"{seed_counts(self.tried['seeds'])} at each rate, bands: from the least to the largest. "
                "Dots: printed.",
                "Small panels of training loss against updates, one per optimizer and inputs, a line per rate.",
                self.screen,
                partial(draw_candidates, self.screen, every, self.per_epoch),
            ),
            drawing(
                "mnist-confusion",
                "What is taken for what",
                f"Test images of each class by the class predicted, mean over {seeds} of {candidate_text(top)}; the "
                f"colour is the share of the row, of errors only. Training never saw these {self.test_examples:,} "
                f"images{', half of the test files; the other half is for validation' if self.real else ''}.",
                "A ten by ten confusion matrix of the test images.",
                long,
                matrix,
            ),
            drawing(
                "mnist-errors",
                "The errors that most networks make",
                f"Test images that most of {seeds} see wrongly, the surest errors first, with what most of those take "
                f"them for. {(wrong['wrong'] == wrong['lanes']).sum()} images are wrong with every seed, {len(wrong)} "
                "with at least one.",
                "A grid of handwritten digits that are hard to read, each with its label and the class predicted.",
                some,
                partial(image_grid, images["test"][some["example"].to_numpy()], names, 3, 90),
            ),
        ]


def _shape_text(shape: Sequence[int]) -> str:
    """(channels, height, width) in the report's order, such as 24x24x4; features alone as they are."""
    return "x".join(map(str, [*shape[1:], shape[0]]))
