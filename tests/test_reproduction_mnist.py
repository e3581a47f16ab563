"""Experiment 5 of the source report: its arithmetic, how its optimizer is inferred, and a run on tiny budgets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import analysis
from analysis import reproduction
from analysis.reproduction import inference, mnist, sizes
from analysis.reproduction.claims import judge, printed, source
from analysis.reproduction.losses import beside
from study.spec import read
from study.tuning.space import Space
from study.verify import reproduce
from study.verify.reproduce import Runner, run_mnist
from trainables.errors import DataError
from trainables.workloads import catalogue, data, models

REPORT = Path(__file__).parents[2] / "shared" / "reference" / "report-numbers.json"
LAYERS: list[dict[str, Any]] = [
    {"kind": "convolution", "out": 4, "kernel": 5, "stride": 1, "padding": 0},
    {"kind": "pooling", "kernel": 2, "stride": 2, "padding": 0},
    {"kind": "convolution", "out": 8, "kernel": 5, "stride": 1, "padding": 0},
    {"kind": "pooling", "kernel": 2, "stride": 2, "padding": 0},
    {"kind": "dense", "out": 32},
    {"kind": "dense", "out": 16},
    {"kind": "dense", "out": 10},
]
PRINTED = inference.printed_table()["printed"].to_numpy()


def test_the_report_s_numbers_are_the_report_s() -> None:
    if not REPORT.is_file():
        pytest.skip("the source report's numbers are not beside the project")
    given = json.loads(REPORT.read_text(encoding="utf-8"))["mnist_cnn"]
    numbers = printed("mnist")
    assert numbers["mean_loss"] == list(given["mean_loss_every_2000_updates"].values())
    assert (numbers["batch_size"], numbers["epochs"]) == (given["batch_size"], given["epochs"])


def test_layers_have_the_shapes_and_parameters_that_torch_gives_them() -> None:
    table = sizes.layer_table([1, 28, 28], LAYERS)
    network = models.build("cnn", (1, 28, 28), 10, width=4, depth=2)
    x, shapes = torch.zeros(1, 1, 28, 28), []
    for layer in network:
        x = layer(x)
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.Linear):
            shapes.append([*x.shape[1:], 1, 1][:3])
    assert table[["channels", "height", "width"]].to_numpy().tolist() == shapes
    assert [f"{row['height']}x{row['width']}x{row['channels']}" for row in table.head(4).to_dict("records")] == [
        "24x24x4", "12x12x4", "8x8x8", "4x4x8"
    ]  # fmt: skip
    assert table["parameters"].sum() == sum(p.numel() for p in network.parameters()) == 5738
    assert table["multiplications"].sum() == models.multiplications(network, (1, 28, 28))


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), [(28, 5, 1, 0), (24, 2, 2, 0), (7, 3, 2, 1)])
def test_the_formula_is_that_of_the_networks(size: int, kernel: int, stride: int, padding: int) -> None:
    expected = catalogue.conv_output_size(size, kernel, stride=stride, padding=padding)
    assert sizes.output_size(size, kernel, stride, padding) == expected


def test_the_report_s_layers_are_the_network_s() -> None:
    pd.testing.assert_frame_equal(
        sizes.layer_table([1, 28, 28], printed("mnist")["layers"]), sizes.layer_table([1, 28, 28], LAYERS)
    )


def test_fully_connected_layers_have_more_parameters_but_fewer_multiplications() -> None:
    claim = judge("mnist", "dense", sizes.size_facts())
    network = nn.Sequential(nn.Flatten(), *(nn.Linear(n, m) for n, m in ((120_000, 32), (32, 16), (16, 10))))
    count = sum(p.numel() for p in network.parameters())
    cnn = models.build("cnn", (3, 200, 200), 10, width=4, depth=2)
    weights, products = sum(p.numel() for p in cnn.parameters()), models.multiplications(cnn, (3, 200, 200))
    large = f"{count:,} parameters against {weights:,}, {count - 58:,} multiplications an image against {products:,}"
    assert f"200x200x3: {large}" in claim.ours
    assert "28x28x1: 25,818 parameters against 5,738, 25,760 multiplications an image against 113,568" in claim.ours
    assert claim.verdict == "differs"
    # As many outputs as 4 filters of 5x5 give: every input to each, instead of 25 a channel.
    assert f"{784 / 25:,.0f} and {120_000 / 75:,.0f} times" in claim.why


def test_losses_are_averaged_as_the_report_prints_them() -> None:
    values = np.arange(1.0, 25.0)  # two epochs of 12 updates, windows of 5: the last two of each are dropped
    columns = {"trial": 0, "lane": 3, "update": range(1, 25), "split": "batch", "metric": "loss", "value": values}
    curves = pd.concat([pd.DataFrame(columns), pd.DataFrame(columns).assign(split="train", value=-1.0)])
    found = inference.window_means(curves, 5, 12)
    assert found[["epoch", "place", "loss"]].to_numpy().tolist() == [[1, 1, 3], [1, 2, 8], [2, 1, 15], [2, 2, 20]]
    # A window that is not whole is none.
    assert len(inference.window_means(curves[curves["update"] < 22], 5, 12)) == 3


def synthetic(seeds: int, shift: float = 0.0, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    """Curves of a plateau and a fall, which begins later or earlier by so many windows: (seeds, 21)."""
    random = np.random.default_rng(seed)
    places = np.arange(len(PRINTED))
    falls = shift + random.normal(0, 0.7, seeds)
    curves = [np.exp(np.interp(places - fall, places, np.log(PRINTED))) for fall in falls]
    return scale * np.array(curves) * np.exp(random.normal(0, 0.01, (seeds, 1)))


def test_the_candidate_that_printed_the_losses_fits() -> None:
    found = inference.fit(synthetic(16), PRINTED)
    assert found.of == [7, 4, 10]
    assert found.spans
    assert found.fits
    assert found.nearest < found.others


@pytest.mark.parametrize(
    ("curves", "why"),
    [
        (synthetic(16, shift=5), "too late"),
        (synthetic(16, shift=-5), "too early"),
        (synthetic(16, scale=1.2), "level"),
        (np.tile(PRINTED, (16, 1)) * np.linspace(1.1, 1.3, 16)[:, None], "no seed so low"),
    ],
)
def test_candidates_that_fall_at_another_time_or_end_elsewhere_do_not(curves: np.ndarray, why: str) -> None:
    found = inference.fit(curves, PRINTED)
    assert not found.fits, why
    assert found.nearest > found.others or not found.spans


def test_the_criterion_refuses_what_is_right_as_rarely_as_it_says() -> None:
    # One of n + 1 exchangeable curves is the furthest with probability 1 / (n + 1); two may be as far, from each other.
    draws = [synthetic(10, seed=seed) for seed in range(400)]
    refused = np.mean([inference.fit(curves[1:], curves[0]).p <= 1 / 10 for curves in draws])
    assert 0.05 < refused < 1 / 10 + 3 * (0.09 / 400) ** 0.5


@pytest.mark.parametrize("dead", [1, 2, 3])
def test_seeds_of_two_kinds_do_not_fit_what_lies_between(dead: int) -> None:
    nothing = np.full((dead, 21), 2.32) * np.linspace(0.999, 1.001, dead)[:, None]
    found = inference.fit(np.vstack([nothing, synthetic(8 - dead, shift=-5)]), PRINTED)
    assert found.spans
    assert not found.fits


def test_one_seed_fits_nothing() -> None:
    assert not inference.fit(PRINTED[None], PRINTED).fits


def frame(curves: dict[tuple[str, str, float], np.ndarray], study: str = "whole") -> pd.DataFrame:
    where = inference.printed_table()
    rows = [
        dict(zip(inference.CANDIDATE, key, strict=True))
        | {"study": study, "seed": seed, "epoch": epoch, "place": place, "loss": loss}
        for key, table in curves.items()
        for seed, losses in enumerate(table)
        for epoch, place, loss in zip(where["epoch"], where["place"], losses, strict=False)
    ]
    return pd.DataFrame(rows)


def test_candidates_come_nearest_first_and_the_nearest_train_on() -> None:
    gap = synthetic(3)
    gap[1, 5] = np.nan
    curves = {
        ("raw", "adam", 0.01): synthetic(3, shift=-6),
        ("raw", "sgd", 0.001): synthetic(3),
        ("raw", "momentum", 0.0001): synthetic(3, seed=1, scale=1.05),
        ("standardized", "sgd", 0.0001): synthetic(3, shift=6),
        ("raw", "rmsprop", 0.01): gap,  # a seed diverged
    }
    found = inference.candidates(frame(curves))
    assert list(found["optimizer"])[:2] in (["sgd", "momentum"], ["momentum", "sgd"])
    assert len(found) == 4
    assert set(found.loc[found["optimizer"] == "adam", "course"]) == {"falls too early"}
    assert set(found.loc[found["inputs"] == "standardized", "course"]) == {"falls too late"}
    assert inference.kept([frame(curves)]) == [("raw", ["sgd", "momentum"], [0.0001, 0.001])]
    # One that was given up early is not among the nearest, however near it was until then.
    early = frame({("standardized", "adam", 0.0001): np.tile(PRINTED[:7], (3, 1))}, "early")
    assert inference.candidates(pd.concat([frame(curves), early]))["points"].tolist() == [21] * 4 + [7]
    assert inference.kept([frame(curves), early]) == inference.kept([frame(curves)])
    # Of one that went on after it had been given up, the whole counts.
    twice = frame({("raw", "sgd", 0.001): np.tile(PRINTED[:7], (3, 1))}, "early")
    pd.testing.assert_frame_equal(inference.candidates(pd.concat([frame(curves), twice])), found)


def training_table(curves: np.ndarray) -> pd.DataFrame:
    ours = frame({("raw", "sgd", 0.001): curves})
    return beside(ours, inference.printed_table(), inference.WINDOW, inference.slack())


def test_the_training_table_says_which_printed_losses_lie_within() -> None:
    curves = np.tile(PRINTED, (2, 1)) * np.array([[0.9], [1.1]])
    curves[:, 3] = PRINTED[3] * np.array([1.1, 1.2])
    table = training_table(curves)
    assert list(table["inside"]) == [place != 3 for place in range(21)]
    assert table["estimate"][0] == pytest.approx(PRINTED[0] * 0.99**0.5)
    assert (table["n"] == 2).all()


@pytest.mark.parametrize(
    ("factor", "shift", "seeds", "verdict", "why"),
    [
        (1.2, 1.0, 3, "agrees", "4 of 4 within the seeds' range"),
        (1.2, 1.5, 3, "differs", "0 of 4 within the seeds' range"),
        (3.0, 1.0, 3, "not checked", "so nearly any loss would lie inside"),
        (1.2, 1.0, 2, "not checked", "2 seeds have no range"),
    ],
)
def test_the_fall_agrees_only_within_a_range_that_excludes_other_losses(
    factor: float, shift: float, seeds: int, verdict: str, why: str
) -> None:
    curves = shift * PRINTED * np.array([[1 / factor], [1.0], [factor]][:seeds])
    if seeds == 2:
        curves[1] = shift * PRINTED * factor
    table = training_table(curves)
    rows = table[inference.parts_of(table["printed"].to_numpy()) == 1]
    facts = {"seeds": seeds, "name": "sgd at 0.001", "fall": mnist.inside_facts(rows, seeds)}
    claim = judge("mnist", "fall", facts)
    assert claim.verdict == verdict
    assert why in claim.why


def predictions() -> pd.DataFrame:
    """Two lanes, three examples of classes 0, 1, 1: the first lane errs once, the second twice."""
    rows = [
        (0, 0, 0, 0, 0, 0.9), (0, 0, 1, 1, 0, 0.8), (0, 0, 2, 1, 1, 0.9),
        (0, 1, 0, 0, 1, 0.6), (0, 1, 1, 1, 0, 0.7), (0, 1, 2, 1, 1, 0.9),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["trial", "lane", "example", "target", "predicted", "probability"])


def test_the_confusion_matrix_counts_a_mean_lane() -> None:
    assert mnist.confusion(predictions(), 2).tolist() == [[0.5, 0.5], [1.0, 1.0]]


def test_errors_begin_with_those_that_most_lanes_make() -> None:
    found = mnist.errors(predictions())
    assert found["example"].tolist() == [1, 0]
    assert found["wrong"].tolist() == [2, 1]
    assert found["lanes"].tolist() == [2, 2]
    assert found["predicted"].tolist() == [0, 1]
    assert found["probability"].tolist() == pytest.approx([0.75, 0.6])


def test_the_shipped_spec_trains_the_report_s_network_on_its_batches() -> None:
    spec = read(reproduce.MNIST)
    assert spec.search.dimensions()["batch_size"].ends() == [printed("mnist")["batch_size"]]
    report = printed("mnist")
    assert spec.workload.facts.train == report["training_images"] == report["epoch_updates"] * report["batch_size"]
    assert spec.budget.epochs == report["epochs"]
    assert Space(spec, "", "").configuration({"optimizer": "sgd", "batch_size": 4}, 0)["evaluation_share"] == 0
    assert spec.search.optimizers() == [*inference.OPTIMIZERS]
    rates = np.geomspace(*spec.rates("sgd"))
    assert min(abs(rates - 0.001)) < 1e-9


def test_mnist_is_left_out_where_it_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise DataError("mnist is unavailable: the folder does not hold it, and downloading failed")

    monkeypatch.setattr(data, "load", load)
    said: list[str] = []
    assert reproduce.run(tmp_path, only=["mnist"], show="quiet", say=said.append) == (None, "")
    assert said == ["mnist: left out, mnist is unavailable: the folder does not hold it, and downloading failed"]


def drawn(found: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    with analysis.style():
        for drawing in found["figures"]:
            yield drawing.name, drawing.draw()


def run(out: Path, seeds: int = 2, **workload: Any) -> None:
    with ExitStack() as stack:
        run_mnist(out, Runner(stack, show="quiet"), seeds, workload)


def check(out: Path, data_set: str) -> None:
    """What must hold of any run: everything is there, and the table is that of the results."""
    truth = reproduce.TRUTH | {"mnist": lambda: reproduce.pictures(data_set)}
    ((found,), troubles) = reproduction.sections(out, truth)
    assert not troubles
    assert {name for name, figure in drawn(found) if figure.axes} == {
        "mnist-batch", "mnist-augmentation", "mnist-training", "mnist-candidates", "mnist-confusion", "mnist-errors"
    }  # fmt: skip
    assert all(drawing.caption and len(drawing.data) for drawing in found["figures"])
    tables = {table.label: pd.DataFrame(table.rows, columns=table.head) for table in found["tables"]}
    assert len(tables["The training table"]) == 21
    assert len(tables["The nearest, and their neighbours, on fresh seeds"]) >= 1
    layers = tables["Layers, shapes and parameters"]
    assert (layers["output, by the formula"] == layers["by torch"]).all()
    assert (layers["in the report"] == layers["by torch"]).all()
    verdicts = {claim.text: claim.verdict for claim in found["claims"]}
    assert set(verdicts.values()) <= {"agrees", "differs", "not checked"}
    assert verdicts["The sizes that the report writes beside its layers"] == "agrees"
    assert found["seconds"] > 0


@pytest.fixture
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The epochs of the digits, and two seeds wherever the experiment would take more.

    Seven windows in each of three epochs, as in the report, and some updates over.
    """
    updates = -(-catalogue.CATALOGUE["digits"].train // 4)
    monkeypatch.setitem(source()["mnist"]["printed"], "epoch_updates", updates)
    monkeypatch.setitem(source()["mnist"]["printed"], "every", updates // 7)
    monkeypatch.setattr(reproduce, "UNREFUTED", 2)
    monkeypatch.setattr(reproduce, "LANES", 4)


@pytest.mark.nightly
@pytest.mark.timeout(900)  # it starts eight workers and more, maybe on a busy machine
@pytest.mark.usefixtures("one_worker", "_tiny")
def test_a_tiny_run_on_digits_is_whole_and_reused(tmp_path: Path) -> None:
    digits: dict[str, Any] = {"data": "digits", "model_args": {"kernel": 3, "padding": 1}}
    run(tmp_path, **digits)
    check(tmp_path, "digits")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.parquet") if file.is_file()}
    run(tmp_path, **digits)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.parquet") if file.is_file()} == before


def test_pictures_are_of_mnist(mnist_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDY_DATA", str(mnist_folder))
    found = reproduce.TRUTH["mnist"]()
    assert found["batch"].shape == (4, 28, 28)
    assert found["augmented"].shape == (4, 6, 28, 28)
    assert (found["augmented"][:, 0] == found["batch"]).all()
    assert (found["augmented"][:, 1:] != found["batch"][:, None]).any((2, 3)).all()
    assert found["test"].shape == (5000, 28, 28)
