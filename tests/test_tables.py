"""Files as data sets: how they are read, divided and copied, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from study.errors import SpecError
from study.results.export import Setting
from study.results.recipe import recipe
from study.spec import check, recorded
from study.usercode import bundle
from trainables.config import Reading, TrialConfig
from trainables.usercode.importing import UserCodeError, changed
from trainables.workloads import data, findings
from trainables.workloads.own import Own

N = 100


def frame() -> pd.DataFrame:
    random = np.random.default_rng(0)
    table = {"a": random.normal(size=N), "b": random.normal(size=N), "city": random.choice(["Bonn", "Rom", "Ulm"], N)}
    return pd.DataFrame({**table, "kind": np.repeat(["x", "y"], [60, 40]), "size": random.normal(size=N)})


def read(folder: Path, name: str = "t.csv", seed: int = 0, *, images: bool = False, **reading: Any) -> Own:
    return data.Source(name, str(folder), Reading(**reading), images).own(folder, seed)


def sizes(own: Own) -> list[int]:
    return [len(each) for each in own.targets]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    frame().to_csv(tmp_path / "t.csv", index=False)
    return tmp_path


def test_text_columns_become_columns_of_their_values(table: Path) -> None:
    own = read(table, label="kind")
    assert own.columns == ("a", "b", "city=Bonn", "city=Rom", "city=Ulm", "size")
    assert (own.task, own.classes) == ("classification", ("x", "y"))
    assert torch.equal(own.inputs[0][:, 2:5].sum(1), torch.ones(70).double())
    assert own.notes[0] == "t.csv: city became 3 columns of 0 and 1, one for each of Bonn, Rom, Ulm"
    assert read(table, label="size", features=("b", "a")).columns == ("b", "a")


def test_kinds_of_files_hold_the_same(table: Path) -> None:
    frame().to_parquet(table / "t.parquet")
    frame().to_csv(table / "semicolon.csv", index=False, sep=";")
    frame().to_csv(table / "index.csv", encoding="utf-8-sig")
    expected = read(table, label="kind")
    for name in ("t.parquet", "semicolon.csv", "index.csv"):
        found = read(table, name, label="kind")
        for mine, theirs in zip(found.inputs + found.targets, expected.inputs + expected.targets, strict=True):
            torch.testing.assert_close(mine, theirs)
    assert read(table, "index.csv", label="kind").notes[0] == "index.csv: left out 1 columns without a name"


def test_splits_are_disjoint_stratified_and_drawn_by_the_seed(table: Path) -> None:
    own, again, other = (read(table, label="kind", seed=seed) for seed in (0, 0, 1))
    assert sizes(own) == [70, 15, 15]
    assert [int((each == 0).sum()) for each in own.targets] == [42, 9, 9]
    assert len(torch.cat(own.inputs).unique(dim=0)) == N
    assert torch.equal(own.inputs[0], again.inputs[0])
    assert not torch.equal(own.inputs[0], other.inputs[0])
    assert sizes(read(table, label="kind", split=(0.5, 0.25, 0.25))) == [50, 25, 25]
    assert sizes(read(table, label="size")) == [70, 15, 15]


def test_rare_classes_and_few_rows(tmp_path: Path) -> None:
    rare = frame().assign(kind=["rare", *["x"] * 99])
    rare.to_csv(tmp_path / "t.csv", index=False)
    assert sizes(read(tmp_path, label="kind")) == [70, 15, 15]
    rare[:2].to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(UserCodeError, match=r"t.csv: has too few rows for three splits$"):
        read(tmp_path, label="kind")


def test_a_column_may_name_the_splits(tmp_path: Path) -> None:
    parts = np.array(["Train"] * 50 + ["val"] * 20 + ["test"] * 30)
    frame().assign(part=parts).to_csv(tmp_path / "t.csv", index=False)
    own = read(tmp_path, label="size", split_column="part")
    assert sizes(own) == [50, 20, 30]
    torch.testing.assert_close(own.inputs[2][:, 0], torch.tensor(frame()["a"][70:].tolist(), dtype=torch.float64))
    frame().assign(part=np.where(parts == "val", "train", parts)).to_csv(tmp_path / "t.csv", index=False)
    own = read(tmp_path, label="kind", split_column="part")
    assert sizes(own) == [57, 13, 30]
    assert "t.csv: names no validation split; 18% of its training examples are one" in own.notes
    for wrong, told in (
        ("tets", "tets in part; valid: train, validation, test"),
        ("train", "has no examples for test"),
    ):
        frame().assign(part=np.where(parts == "test", wrong, parts)).to_csv(tmp_path / "t.csv", index=False)
        with pytest.raises(UserCodeError, match=told):
            read(tmp_path, label="kind", split_column="part")


def test_groups_stay_in_one_split(tmp_path: Path) -> None:
    frame().assign(a=np.arange(N) % 20, patient=np.arange(N) % 20).to_csv(tmp_path / "t.csv", index=False)
    own = read(tmp_path, label="kind", group_column="patient")
    groups = [set(each[:, 0].tolist()) for each in own.inputs]
    assert [len(each) for each in groups] == [14, 3, 3]
    assert len(set.union(*groups)) == 20
    assert "patient" not in own.columns


def test_missing_values_are_refused_dropped_or_filled_in(tmp_path: Path) -> None:
    lacking = frame()
    lacking["a"] = lacking["a"].astype(object)
    lacking.loc[[3, 4], "a"] = ["?", None]
    lacking.loc[4, "city"] = None
    lacking.loc[9, "kind"] = None
    lacking.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(UserCodeError, match=r"3 of 100 rows lack a value \(kind 1, a 2, city 1\); missing = \"drop\""):
        read(tmp_path, label="kind")
    dropped = read(tmp_path, label="kind", missing="drop")
    assert sum(sizes(dropped)) == 97
    assert dropped.notes[0] == "t.csv: of 3 rows that lack a value left out 3"
    filled = read(tmp_path, label="kind", missing="mean")
    assert filled.notes[0] == "t.csv: of 3 rows that lack a value left out 1 and filled in means in 2"
    assert sum(sizes(filled)) == 99
    column = torch.cat(filled.inputs)[:, 0]
    known = set(frame()["a"].drop(index=[3, 4, 9]))
    (mean,) = {value for value in column.tolist() if value not in known}
    train = filled.inputs[0][:, 0]
    assert mean == pytest.approx(float(train[train != mean].mean()))
    assert int((column == mean).sum()) == 2


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no label": (
        {},
        {},
        r't.csv: say which column is to be predicted, as in label = "size" \(`study init --label`\); co',
    ),
    "another label": (
        {},
        {"label": "Sise"},
        r't.csv: has no column "Sise" for label \(did you mean size\?\); columns: a, b, city, kind, size',
    ),
    "unknown exclude": ({}, {"label": "size", "exclude": ("c",)}, "has no c, of exclude; columns: a, b, city"),
    "all excluded": ({}, {"label": "a", "exclude": ("b", "city", "kind", "size")}, "no column is left for the inputs"),
    "unknown feature": ({}, {"label": "size", "features": ("a", "c")}, "has no c, of features; columns: a, b, city"),
    "unknown split": ({}, {"label": "size", "split_column": "p"}, "has no p, of split_column, group_column; columns"),
    "label as feature": ({}, {"label": "a", "features": ("a", "b")}, "a is the label, and cannot be one of the feat"),
    "dates": (
        {"city": pd.date_range("2024-01-01", periods=N).astype(str)},
        {"label": "kind"},
        r't.csv: 1 of 4 inputs cannot be used; make numbers of them, or write exclude = \["city"\]\n'
        r"      city holds dates \(2024-01-01\)$",
    ),
    "several columns": (
        {"city": [f"name {n}" for n in range(N)], "a": None, "b": [f"{n}/1/24" for n in range(1, N + 1)]},
        {"label": "kind"},
        r't.csv: 3 of 4 inputs cannot be used; .* write exclude = \["a", "b", "city"\]\n'
        r"      a holds no value\n      b holds dates \(1/1/24\)\n      city holds 100 different texts ",
    ),
    "columns besides those that are excluded": (
        {"city": None, "a": None},
        {"label": "kind", "exclude": ("b", "a")},
        r'1 of 2 inputs cannot be used; .* write exclude = \["b", "a", "city"\]',
    ),
    "unusable columns of those that are named": (
        {"city": None},
        {"label": "kind", "features": ("b", "city"), "exclude": ("size",)},
        r'1 of 2 inputs cannot be used; .* write features = \["b"\]',
    ),
    "no usable column": (
        {"city": None, "a": None},
        {"label": "kind", "exclude": ("b", "size")},
        r"2 of 2 inputs cannot be used; make numbers of at least one of them\n      a holds no value",
    ),
    "documents": (
        {"city": [f"A long  review, number {n:03}, " + "of words " * 50 for n in range(N)]},
        {"label": "kind"},
        r"texts \(A long review, number 000, of ... ... A long review, number 099, of ...\)",
    ),
    "an empty label": (
        {"kind": None},
        {"label": "kind"},
        "t.csv: kind holds no value, so it cannot be the label, or divide the examples",
    ),
    "a decimal comma": (
        {"a": [f"{n},5" for n in range(N)]},
        {"label": "kind"},
        r"a holds numbers that are not written as 1234.5 \(0,5\)$",
    ),
    "a decimal comma of few values": (
        {"a": [f"{n % 3},25" for n in range(N)]},
        {"label": "kind"},
        r"a holds numbers that are not written as 1234.5 \(0,25\)$",
    ),
    "a decimal comma in the label": (
        {"size": [f"{n},5" for n in range(N)]},
        {"label": "size"},
        r"t.csv: the label size holds numbers that are not written as 1234.5 \(0,5\); make numbers of them, or say",
    ),
    "a date as the label": (
        {"size": pd.date_range("2024-01-01", periods=N).astype(str)},
        {"label": "size"},
        r"the label size holds dates \(2024-01-01\); make numbers of them",
    ),
    "a name as the label": (
        {"size": [f"name {n}" for n in range(N)]},
        {"label": "size"},
        r"the label size holds 100 different texts \(name 0 ... name 99\), and at most 20 can be categories; make",
    ),
    "a word in the label": (
        {"size": ["late", *range(1, N)]},
        {"label": "size"},
        r"the label size holds numbers, and text \(late\); make numbers of them",
    ),
    "text for a regression": (
        {},
        {"label": "kind", "task": "regression"},
        r"targets are not numbers \([xy]\), and task = ",
    ),
    "a currency": ({"a": [f"$1,{n:03}" for n in range(N)]}, {"label": "kind"}, r"not written as 1234.5 \(\$1,000\)"),
    "a percent sign": ({"a": [f"{n} %" for n in range(N)]}, {"label": "kind"}, r"not written as 1234.5 \(0 %\)"),
    "a word among numbers": (
        {"a": [*range(N - 2), "none yet", "late"]},
        {"label": "kind"},
        r"a holds numbers, and text \(late, none yet\)$",
    ),
    "infinity": ({"a": [np.inf, *range(N - 1)]}, {"label": "kind"}, r"1 of 100 rows lack a value \(a 1\); missing ="),
    "an empty column": ({"a": None}, {"label": "kind"}, r"exclude = \[\"a\"\]\n      a holds no value$"),
    "names": (
        {"city": [f"name {n}" for n in range(N)]},
        {"label": "kind"},
        r"city holds 100 different texts \(name 0 ... name 99\), and at most 20 can be categories$",
    ),
    "floats that are all whole": ({"kind": np.arange(N) % 2 + 0.0}, {"label": "kind"}, "look like classes 0, 1 stored"),
}


@pytest.mark.parametrize(("columns", "reading", "told"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_said(columns: Any, reading: Any, told: str, tmp_path: Path) -> None:
    frame().assign(**columns).to_csv(tmp_path / "t.csv", index=False)
    if "look like" in told:
        assert told in read(tmp_path, **reading).doubt
        return
    with pytest.raises(UserCodeError, match=told):
        read(tmp_path, **reading)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "t.csv: has no rows; expected a line of names, and a line for each example"),
        (b"\n", "t.csv: has no rows; expected a line of names, and a line for each example"),
        (b"a,b\n", "t.csv: has no rows; expected a line of names, and a line for each example"),
        (b"5.1,3.5,0\n4.9,3.0,0\n", r"has numbers \(5.1, 3.5, 0\) in its first line, where the columns' names"),
        (
            b"a b\n1 2\n",
            r"has only one column in its first line \(a b\); give all names there, with commas, semicolons, tabs or",
        ),
        (b"<!DOCTYPE html>\n<p>404\n", r"has only one column in its first line \(<!DOCTYPE html>\)"),
        (b"a,a,b\n1,2,3\n", "several columns are called a; give each a name of its own"),
        (b"# from a device\na,b\n1,2\n", r"than the first line has names \(# from a device\); name"),
        (b"# from a device, May\na,b,c\n1,2,3\n", r"than the first line has names \(# from a device, May\); name"),
        (b"a,b\n1,2\n1,2,3\n", "t.csv: cannot be read: ParserError: .* Expected 2 fields in line 3, saw 3"),
        ("a,b\né,2\n".encode("latin-1"), r"t.csv: is not UTF-8 text \(byte \d\); save it as UTF-8"),
    ],
)
def test_damaged_files_are_said_so(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserCodeError, match=told):
        read(tmp_path, label="b")


@pytest.mark.parametrize("separator", [",", ";", "|", "\t"])
def test_the_separator_is_the_one_outside_quotes(separator: str, tmp_path: Path) -> None:
    rows = [f"{n}{separator}{n * n % 7}{separator}{'xy'[n % 2]}" for n in range(20)]
    header = f'"a, in; cm, or | m, or so"{separator} "b" {separator}kind'
    (tmp_path / "t.csv").write_text("\n".join([header, *rows, ""]))
    own = read(tmp_path, label="kind")
    assert (own.columns, own.classes) == (("a, in; cm, or | m, or so", "b"), ("x", "y"))


def test_text_of_digits_is_a_category(tmp_path: Path) -> None:
    frame().assign(city=[f"{n % 3:02}" for n in range(N)]).to_parquet(tmp_path / "t.parquet")
    assert "city=02" in read(tmp_path, "t.parquet", label="kind").columns


def test_numbered_columns_have_names(tmp_path: Path) -> None:
    pd.DataFrame(np.random.default_rng(0).normal(size=(N, 3))).to_csv(tmp_path / "t.csv", index=False)
    assert read(tmp_path, label="2").columns == ("0", "1")


def test_arrays_of_npz_files(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (N, 8, 8), dtype=np.uint8), np.arange(N) % 3
    np.savez(tmp_path / "a.npz", x=x, y=y)
    own = read(tmp_path, "a.npz", images=True)
    assert sizes(own) == [70, 15, 15]
    assert own.inputs[0].shape == (70, 1, 8, 8)
    np.savez(tmp_path / "keras.npz", x_train=x[:80], y_train=y[:80], x_test=x[80:], y_test=y[80:])
    assert sizes(read(tmp_path, "keras.npz")) == [65, 15, 20]
    thirds = {"train": slice(0, 50), "val": slice(50, 70), "test": slice(70, N)}
    np.savez(
        tmp_path / "medmnist.npz",
        **{f"{part}_images": x[rows] for part, rows in thirds.items()},
        **{f"{part}_labels": y[rows, None] for part, rows in thirds.items()},
    )
    own = read(tmp_path, "medmnist.npz")
    assert sizes(own) == [50, 20, 30]
    assert torch.equal(own.inputs[2], torch.from_numpy(x[70:].astype(float)))
    np.savez(tmp_path / "b.npz", spectra=x[:, 0], grade=y)
    assert sizes(read(tmp_path, "b.npz", label="grade", features=("spectra",))) == [70, 15, 15]
    with pytest.raises(UserCodeError, match=r"b.npz: has the arrays spectra, grade; expected x and y, or x_train, "):
        read(tmp_path, "b.npz")
    np.savez(tmp_path / "c.npz", x=x, y=y[1:])
    with pytest.raises(UserCodeError, match=r"c.npz: has inputs of \(100, 8, 8\) and targets of \(99,\)"):
        read(tmp_path, "c.npz")
    np.savez(tmp_path / "d.npz", x=x, y=np.array([{}] * N))
    with pytest.raises(UserCodeError, match=r"d.npz: cannot be read: ValueError: Object arrays cannot be loaded"):
        read(tmp_path, "d.npz")


def test_folders_of_images(tmp_path: Path) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(40):
        place = tmp_path / "pets" / ("cat", "dog")[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (6, 5), dtype=np.uint8)).save(place)
    own = read(tmp_path, "pets/")
    assert (own.classes, sizes(own)) == (("cat", "dog"), [28, 6, 6])
    assert own.inputs[0].shape == (28, 1, 6, 5)
    assert float(own.inputs[0].max()) <= 1
    (tmp_path / "divided").mkdir()
    for part in ("train", "val", "test"):
        (tmp_path / "divided" / part).symlink_to(tmp_path / "pets")
    assert sizes(read(tmp_path, "divided/")) == [40, 40, 40]
    Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(tmp_path / "pets" / "cat" / "z.png")
    with pytest.raises(UserCodeError, match=r"pets/: has images of several sizes \(5x6, 9x9\); make them all of one"):
        read(tmp_path, "pets/")


def test_copies_in_two_splits_are_warned_of(tmp_path: Path) -> None:
    pd.concat([frame(), frame()]).to_csv(tmp_path / "t.csv", index=False)
    told = findings.warnings(read(tmp_path, label="kind"))
    assert [line.partition(" of ")[2] for line in told] == [
        "30 validation examples have the inputs of a training example",
        "30 test examples have the inputs of a training example",
    ]


def test_the_printed_lines_of_a_setting_read_the_same_table(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setting = {"optimizer": "adam", "batch_size": 16, "width": 4, "depth": 1, "model": "mlp", "rates": (1e-2, 1e-2, 1)}
    config = TrialConfig(**setting, data="t.csv", code=str(table), label="kind", features=["a", "city"])
    made = Setting(None, None, config, {})  # type: ignore[arg-type]
    assert made.data.in_shape == (4,)
    exec(recipe(config, made.network(), made.data, 3), names := {})
    assert torch.equal(names["data"].train.inputs, made.data.train.inputs)
    assert "test accuracy" in capsys.readouterr().out


def tables(**workload: Any) -> dict[str, Any]:
    return {
        "name": "own",
        "workload": {"data": "t.csv", "model": "mlp", "label": "kind", **workload},
        "search": {"width": 8, "depth": 1, "batch_size": 16, "optimizer": "adam"},
        "budget": {"trials": 1, "epochs": 1},
        "confirm": False,
    }


def test_a_table_is_copied_into_the_study(table: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    spec = check(tables(), "own.toml", table)
    facts, results = spec.workload.facts, tmp_path_factory.mktemp("results")
    assert (facts.task, facts.in_shape, facts.train, facts.classes) == ("classification", (6,), 70, ("x", "y"))
    assert spec.workload.metric == "accuracy"
    assert facts.baselines["accuracy"] == pytest.approx(9 / 15)
    spec.copy_code(results)
    (results / "spec.toml").write_text(spec.to_toml())
    frame()[:50].to_csv(table / "t.csv", index=False)
    assert recorded(results) == spec
    assert recorded(results).workload.facts == facts
    assert [file for file, _ in bundle.edits(results)] == [table / "t.csv"]
    (results / "code" / "t.csv").write_text("a,kind\n1,x\n")
    assert changed(results / "code") == ["t.csv"]
    with pytest.raises(SpecError, match="differs from the code that the study began with"):
        recorded(results)


def test_mistakes_about_files_are_said_before_they_are_read(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {
        "t.xlsx": "a file is .csv, .tsv, .parquet, .npz, or a folder of images with a slash at its end;",
        "images": 'unknown data set "images"; valid: cubic',
        "https://host/t.csv": "workload.data: https://host/t.csv: is a URL; download it, and name the file",
        "none.csv": "workload.data: none.csv: there is no such file (",
        "none/": "workload.data: none/: there is no such folder (",
    }
    for name, told in cases.items():
        with pytest.raises(SpecError) as raised:
            check(tables(data=name), "own.toml", table)
        assert told in str(raised.value)
    with pytest.raises(SpecError, match=r'workload.label = "kind": digits is a shipped data set; leave it out'):
        check(tables(data="digits"), "own.toml", table)
    monkeypatch.setattr(bundle, "MOST_BYTES", 100)
    with pytest.raises(SpecError, match=r"t.csv: has 0 MiB, and up to 0 MiB are copied into a study; give its"):
        check(tables(), "own.toml", table)


@pytest.mark.long
def test_an_absolute_path_is_read_where_it_lies(table: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    spec, results = check(tables(data=str(table / "t.csv"))), tmp_path_factory.mktemp("results")
    spec.copy_code(results)
    assert [file.name for file in (results / "code").iterdir()] == ["inspected.json"]
    assert not list(bundle.edits(results))
    with (table / "t.csv").open("a") as file:
        file.write("1,2,Bonn,x,3\n")
    assert [file for file, _ in bundle.edits(results)] == [table / "t.csv"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"split": [0.7, 0.3]}, "workload.split = [0.7, 0.3]: must be three shares that sum to 1, as in split = ["),
        ({"split": [0.7, 0.2, 0.2]}, "must be three shares that sum to 1"),
        (
            {"missing": "median"},
            'workload.missing = "median": unknown missing "median" (did you mean mean?); valid',
        ),
        ({"features": "a"}, 'workload.features = "a": must be a list, as in features = ["length", "width"]'),
        ({"label": "sort"}, 'workload.data: t.csv: has no column "sort" for label; columns: a, b, city, kind, size'),
    ],
)
def test_check_reports_mistakes_about_reading(more: dict[str, Any], told: str, table: Path) -> None:
    with pytest.raises(SpecError) as raised:
        check(tables(**more), "own.toml", table)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("y,a\nr1,0,1\nr2,1,2\n", {}, "its lines have more values than the first line has names"),
        ("a,a ,y\n1,2,0\n3,4,1\n", {}, "several columns are called a; give each a name of its own"),
        (
            "a,b,y\n,1,0\n2,,1\n",
            {"missing": "drop"},
            'every row lacks a value (a, b); write missing = "mean", or exclude = ["a", "b"]',
        ),
        (
            "a,b,y\n1,,0\n2,,1\n",
            {"missing": "mean", "features": ("b",)},
            "1 of 1 inputs cannot be used; make numbers of at least one of them\n      b holds no value",
        ),
        ("y,part\n0,train\n1,test\n", {"split_column": "part"}, "no column is left for the inputs"),
    ],
    ids=["names of rows", "a name twice", "nothing left", "an empty column", "no inputs"],
)
def test_tables_that_cannot_be_read_are_refused_with_advice(
    tmp_path: Path, text: str, more: dict[str, Any], message: str
) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserCodeError) as caught:
        read(tmp_path, label="y", **more)
    assert message in str(caught.value)


def test_a_separator_at_the_end_of_lines_shifts_no_column(tmp_path: Path) -> None:
    rows = "".join(f"{place % 2},{place},{place / 10},\n" for place in range(40))
    (tmp_path / "t.csv").write_text("y,a,b\n" + rows)
    own = read(tmp_path, label="y")
    assert sorted(torch.cat(own.inputs)[:, 0].tolist()) == list(range(40))
    assert set(torch.cat(own.targets).tolist()) == {0, 1}


def test_a_comma_divides_names_that_hold_other_separators(tmp_path: Path) -> None:
    for first in ("height|cm,weight|kg,label", "a;b,label", "p(y|x),label"):
        rows = "".join(f"{','.join([str(n % 7)] * first.count(','))},{n % 2}\n" for n in range(N))
        (tmp_path / "t.csv").write_text(f"{first}\n{rows}")
        assert read(tmp_path, label="label").columns == tuple(first.split(",")[:-1])
