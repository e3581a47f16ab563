from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from study.errors import SpecError
from study.spec import SHIPPED, check, read, recorded
from study.spec.model import Confirm
from study.tuning.space import Space
from trainables.workloads.catalogue import OPTIMIZERS

GOOD: dict[str, Any] = {
    "name": "good",
    "workload": {"data": "cubic", "model": "mlp"},
    "search": {"width": [8, 16], "depth": 2, "batch_size": [1, 32, "full"], "optimizer": ["sgd", "adam"]},
    "budget": {"trials": 4, "epochs": 2},
    "confirm": False,
}


def changed(**changes: Any) -> dict[str, Any]:
    """GOOD with entries replaced: section__key=value; None takes an entry out."""
    tables = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *sections, key = path.split("__")
        table = tables
        for section in sections:
            table = table.setdefault(section, {})
        table[key] = value
        if value is None:
            del table[key]
    return tables


def quadratic(**changes: Any) -> dict[str, Any]:
    """The spec of DeepOBS's quadratic problem, with entries replaced likewise."""
    workload = {"data": "quadratic", "model": "quadratic", "standardize": False}
    return changed(workload=workload, search={"batch_size": 128, "optimizer": "sgd"}, **changes)


def test_seeds_of_replicates_and_of_the_confirmation_never_meet() -> None:
    studies = [check(changed(tuning={"seed": seed}, confirm={"seeds": 10}, lanes={"seeds": 3})) for seed in (0, 1)]
    found = [seed for each in studies for replicate in range(50) for seed in each.lane_seeds(replicate)]
    found += [seed for each in studies for seed in each.confirm_seeds()]
    assert len(set(found)) == len(found) == 2 * (50 * 3 + 10)


def test_defaults_give_equal_effort_and_a_confirmation() -> None:
    spec = check(changed(confirm=None))
    assert (spec.tuning.fair, spec.tuning.scheduler, spec.lanes.extensions) == (True, "none", 2)
    assert spec.confirm == Confirm(top=3, seeds=10)


def test_confirm_false_survives_writing_and_reading(tmp_path: Path) -> None:
    for confirm in (False, {"top": 5}):
        spec = check(changed(confirm=confirm))
        assert spec.confirm == (Confirm(top=5) if confirm else None)
        (tmp_path / "spec.toml").write_text(spec.to_toml())
        assert read(tmp_path / "spec.toml") == recorded(tmp_path) == check(spec.tables()) == spec
    (tmp_path / "spec.toml").write_text(check(GOOD).to_toml())
    assert read(tmp_path / "spec.toml", {"confirm": {"top": 2}}).confirm == Confirm(top=2)
    assert read("quick", {"confirm": False}).confirm is None


def test_written_cells_survive_writing_and_reading(tmp_path: Path) -> None:
    settings = {"optimizer": "rmsprop", "settings": {"alpha": 0.9}, "batch_size": "full"}
    spec = check(changed(confirm={}, baseline=[OURS, OURS | settings | {"name": "b"}], enqueue=[FIRST, FIRST]))
    (tmp_path / "spec.toml").write_text(spec.to_toml())
    assert read(tmp_path / "spec.toml") == recorded(tmp_path) == spec
    assert "baseline" not in check(GOOD).to_toml()


def test_a_baseline_is_not_checked_against_the_lanes_of_the_search() -> None:
    lanes = {"learning_rate": {"sgd": [0.1], "adam": [0.01]}, "settings": {"beta1": [0.8, 0.9]}, "weight_decay": 0.1}
    ours = OURS | {"optimizer": "adan", "schedule": "cosine", "clip_norm": 1}
    spec = check(changed(confirm={}, lanes=lanes, baseline=[ours]))
    assert spec.baseline[0].recipe() == {"schedule": "cosine", "clip_norm": 1.0}


def test_a_baseline_is_checked_with_its_own_arguments() -> None:
    ours = OURS | {"batch_size": 1, "model_args": {"norm": "none"}}
    search = {"search__batch_size": 32, "workload__model_args": {"norm": ["none", "batch"]}}
    assert check(changed(confirm={}, baseline=[ours], **search)).baseline[0].batch_size == 1


def test_a_recorded_spec_without_confirm_has_no_confirmation(tmp_path: Path) -> None:
    """Earlier versions wrote nothing for a study without one."""
    (tmp_path / "spec.toml").write_text(check(GOOD).to_toml().replace("confirm = false\n", ""))
    assert recorded(tmp_path).confirm is None
    assert read(tmp_path / "spec.toml").confirm == Confirm()


OURS = {"name": "ours", "optimizer": "adam", "learning_rate": 1e-3, "batch_size": 32, "width": 16, "depth": 2}


def ours_without(key: str) -> dict[str, Any]:
    return {name: value for name, value in OURS.items() if name != key}


FIRST = {"optimizer": "adam", "batch_size": 32, "width": 16}
MNIST_CNN = {"workload": {"data": "mnist", "model": "cnn"}}
BAD = {
    "an axis among the settings": (
        changed(lanes__settings={"warmup": [5.0]}),
        "lanes.settings.warmup: is a key of its own; write it as lanes.warmup",
    ),
    "a list in a list of schedules": (
        changed(lanes__schedule=[["cosine"]]),
        'unknown schedule ["cosine"] (did you mean cosine?); valid: constant, linear',
    ),
    "no momentum where the average needs it": (
        changed(search__optimizer=["schedule-free-sgd"], search__settings={"schedule-free-sgd": {"momentum": 0.0}}),
        "0 leaves no average to evaluate; valid: above 0, below 1",
    ),
    "no momentum in a lane": (
        changed(search__optimizer=["schedule-free-sgd", "momentum"], lanes__settings={"momentum": [0.0, 0.9]}),
        "schedule-free-sgd: 0 leaves no average to evaluate",
    ),
    "unknown key": (
        changed(budget__epoch=3),
        "budget.epoch: unknown key (did you mean epochs?); valid: trials, epochs, updates",
    ),
    "unknown section": (
        changed(bugdet={}),
        "bugdet: unknown key (did you mean budget?); valid: name, description, workload",
    ),
    "unknown optimizer": (
        changed(search__optimizer=["sgd", "adm"]),
        'search.optimizer = ["sgd", "adm"]: unknown optimizer "adm" (did you mean adam?); valid: gradient-descent, sgd',
    ),
    "a baseline without a confirmation": (
        changed(baseline=[OURS]),
        "baseline: needs the fresh seeds of a confirmation, and confirm = false; give the table [confirm] instead",
    ),
    "one baseline as a table": (changed(baseline=OURS), "must be an array of tables, as in [[baseline]]"),
    "a baseline without a width": (
        changed(confirm={}, baseline=[OURS, {**ours_without("width"), "name": "b"}]),
        "baseline[2].width: missing, because the search has it; valid: any",
    ),
    "an unknown key of a baseline": (
        changed(confirm={}, baseline=[OURS | {"rate": 0.1}]),
        "baseline[1].rate: unknown key; valid: name, learning_rate, schedule, warmup, weight_decay, clip_norm",
    ),
    "two baselines of one name": (changed(confirm={}, baseline=[OURS, OURS]), 'baseline[2].name = "ours": is the name'),
    "a baseline named as an optimizer": (
        changed(confirm={}, baseline=[OURS | {"name": "sgd"}]),
        'baseline[1].name = "sgd": is the name of an optimizer of the search; give another',
    ),
    "a baseline with a large batch": (
        changed(confirm={}, baseline=[OURS | {"batch_size": 20_000}]),
        "baseline[1].batch_size = 20000: larger than the 10000 training examples of cubic",
    ),
    "a baseline with a wrong setting": (
        changed(confirm={}, baseline=[OURS | {"settings": {"beta3": 0.9}}]),
        "baseline[1].settings.beta3: adam has no such setting; valid: beta1",
    ),
    "a baseline with an unknown schedule": (
        changed(confirm={}, baseline=[OURS | {"schedule": "cosin"}]),
        'baseline[1].schedule = "cosin": unknown schedule "cosin" (did you mean cosine?); valid: constant',
    ),
    "a baseline without the decay that it asks for": (
        changed(confirm={}, baseline=[OURS | {"optimizer": "adan", "weight_decay": 0.1}]),
        "baseline[1].weight_decay: adan has no weight decay; leave out one of the two",
    ),
    "a baseline with an argument": (
        changed(confirm={}, baseline=[OURS | {"model_args": {"heads": 2}}]),
        "baseline[1].model_args.heads = 2: the search has no such key; leave it out",
    ),
    "a cell beyond the space": (
        changed(enqueue=[FIRST, FIRST | {"width": 9}]),
        "enqueue[2].width = 9: not in the search; valid: [8, 16]",
    ),
    "a cell of another optimizer": (
        changed(enqueue=[FIRST | {"optimizer": "nadam"}]),
        'enqueue[1].optimizer = "nadam": not in the search; valid: sgd, adam',
    ),
    "a cell without a searched setting": (
        changed(enqueue=[FIRST], search__settings={"adam": {"beta1": {"low": 0.5, "high": 0.9}}}),
        "enqueue[1].settings.beta1: missing, because the search has it; valid: {low = 0.5, high = 0.9, log = false}",
    ),
    "a cell with a setting that is not searched": (
        changed(enqueue=[FIRST | {"settings": {"beta1": 0.9}}]),
        "enqueue[1].settings.beta1 = 0.9: the search has no such key; leave it out",
    ),
    "more cells than trials": (changed(enqueue=[FIRST] * 5), "enqueue: 5 cells for budget.trials = 4; leave some out"),
    "a cell before a grid": (
        changed(enqueue=[FIRST], tuning={"sampler": "grid"}),
        "enqueue: the grid sampler has an order of its own",
    ),
    "unknown data": (
        changed(workload__data="minst"),
        'workload.data = "minst": unknown data set "minst" (did you mean',
    ),
    "unknown engine": (changed(lanes__engine="jit"), "valid: auto, native, eager, cuda-graph, solo"),
    "an engine without the rule": (
        changed(lanes__engine="native", search__optimizer=["adam", "ASGD"]),
        "lanes.engine: native does not train ASGD, which runs lane by lane; valid: auto",
    ),
    "a rule that the kernel lacks": (
        changed(lanes__engine="native", search__optimizer=["adam", "lion"]),
        "lanes.engine: native does not train lion; valid: auto, eager",
    ),
    "halving at once": (changed(lanes__halving=True, budget__epochs=1), "lanes.halving: rates are dropped between"),
    "solo for a rule": (changed(lanes__engine="solo"), "lanes.engine: solo is for "),
    "augmented numbers": (changed(workload__augment={"rotate": 10.0}), "augment is for images; cubic has inputs of"),
    "no augmentation of that name": (changed(workload__augment={"spin": 10.0}), "workload.augment.spin: unknown key"),
    "a turn of nothing": (changed(workload__augment={"rotate": 0.0}), "workload.augment.rotate = 0.0"),
    "settings of no optimizer here": (
        changed(search__settings={"momentum": {"momentum": 0.9}}),
        "search.settings.momentum: not among the optimizers of the search; valid: sgd, adam",
    ),
    "no such setting": (
        changed(search__settings={"adam": {"beta3": [0.9]}}),
        "search.settings.adam.beta3: adam has no such setting; valid: beta1 (usually 0.9), beta2 (usually 0.999), eps",
    ),
    "a share of one": (
        changed(search__settings={"adam": {"beta1": {"low": 0.5, "high": 1.0}}}),
        "search.settings.adam.beta1 = {low = 0.5, high = 1.0, log = false}: 1 is not a share; valid: from 0, below 1",
    ),
    "what torch.optim refuses": (
        changed(search__optimizer=["adam", "ASGD"], search__settings={"ASGD": {"weight_decay": -1.0}}),
        "search.settings.ASGD.weight_decay = -1.0: Invalid weight_decay value: -1.0",
    ),
    "a setting in words": (
        changed(search__settings={"adam": {"beta1": "high"}}),
        '"high" is not a finite number',
    ),
    "a setting twice": (changed(search__settings={"adam": {"beta1": [0.9, 0.9]}}), "a value is given twice"),
    "half a range of a setting": (
        changed(search__settings={"adam": {"beta1": {"low": 0.9}}}),
        "a range needs high, as in {low = 4",
    ),
    "a log range from 0": (
        changed(search__settings={"adam": {"eps": {"low": 0.0, "high": 1e-3, "log": True}}}),
        "a log range cannot start at 0",
    ),
    "a grid of a range": (
        changed(tuning__sampler="grid", search__settings={"adam": {"beta1": {"low": 0.5, "high": 0.9}}}),
        "search.settings.adam.beta1 = {low = 0.5, high = 0.9, log = false}: the grid sampler needs lists",
    ),
    "unknown scheduler": (changed(tuning__scheduler="median"), "valid: asha, hyperband, none"),
    "unknown objective": (
        changed(tuning__objectives=["metric", "time"]),
        'unknown objective "time"; valid: metric, train_seconds, updates, examples, parameters',
    ),
    "an objective twice": (
        changed(tuning={"objectives": ["metric", "metric"], "scheduler": "none"}),
        "an objective is given twice",
    ),
    "confirm in words": (changed(confirm=True), "confirm = true: must be a table, as in [confirm], or false"),
    "one fresh seed": (changed(confirm={"seeds": 1}), "confirm.seeds = 1: must be at least 2 and at most 10,000"),
    "unknown model": (changed(workload__model="rnn"), "valid: linear, mlp, cnn"),
    "unknown sampler": (changed(tuning__sampler="bayes"), "valid: tpe, random, qmc, grid"),
    "negative width": (changed(search__width=-4), "search.width = -4: -4 is below 1"),
    "zero in a list": (changed(search__width=[0, 4]), "search.width = [0, 4]: 0 is below 1"),
    "low above high": (changed(search__width={"low": 9, "high": 3}), "search.width: low = 9 is above high = 3"),
    "log from zero": (changed(search__width={"low": 0, "high": 3, "log": True}), "a log range cannot start at 0"),
    "half a range": (changed(search__width={"low": 1}), "a range needs high"),
    "odd key in a range": (changed(search__width={"low": 1, "high": 2, "step": 1}), "unknown step in a range"),
    "a range of optimizers": (
        changed(search__optimizer={"low": 1, "high": 2}),
        "must be one value or a list of values",
    ),
    "empty list": (changed(search__width=[]), "search.width = []: an empty list leaves nothing to choose"),
    "a value twice": (changed(search__width=[4, 4]), "a value is given twice"),
    "batch too large": (
        changed(search__batch_size=[32, 20_000]),
        "search.batch_size = 20000: larger than the 10000 training examples of cubic",
    ),
    "batch in words": (changed(search__batch_size="all"), '"all" is not a batch size; valid: a whole number or "full"'),
    "fractional width": (changed(search__width=4.5), "search.width = 4.5: 4.5 is not a whole number"),
    "true for a number": (changed(search__width=True), "true is not a whole number"),
    "text for a number": (changed(budget__trials="ten"), 'budget.trials = "ten": must be a whole number'),
    "no seeds": (changed(lanes__seeds=0), "lanes.seeds = 0: must be at least 1 and at most 10,000"),
    "rates from zero": (
        changed(lanes__learning_rate={"low": 0.0, "high": 1.0}),
        "low = 0.0: 0.0 is out of range; valid",
    ),
    "rates reversed": (changed(lanes__learning_rate={"low": 1.0, "high": 0.1}), "low = 1.0 is above high = 0.1"),
    "no limit": (changed(budget__epochs=None), "budget: needs exactly one of epochs, updates, examples, seconds; none"),
    "two limits": (
        changed(budget__seconds=3.0),
        "budget: needs exactly one of epochs, updates, examples, seconds; epochs",
    ),
    "no name": (changed(name=None), 'name: missing; give one, as in name = "my-study"'),
    "name with a slash": (changed(name="a/b"), 'name = "a/b": must be letters, digits, dots, dashes'),
    "no search": (
        changed(search=None),
        "search: missing; add the table [search] with width, depth, batch_size, optimizer",
    ),
    "no width": (changed(search__width=None), "search.width: missing; mlp needs it"),
    "a section that is none": (changed(search=3), "search = 3: must be a table, as in [search]"),
    "width of a linear model": (
        changed(workload__model="linear", search__depth=None),
        "search.width: a linear model has none; leave it out",
    ),
    "accuracy of a regression": (changed(workload__metric="accuracy"), "cubic is a regression; valid: loss"),
    "a target in percent": (
        changed(workload={"data": "digits", "model": "mlp", "target": 95.0}),
        "workload.target = 95.0: must be an accuracy, above 0 and at most 1; write 0.95",
    ),
    "impossible target": (changed(workload__target=-1.0), "workload.target = -1.0: must be a loss, above 0"),
    "images wanted": (
        changed(workload__model="cnn"),
        "cubic has no images but inputs of (2,); those that do:",
    ),
    "a cnn too deep": (
        changed(**MNIST_CNN, search__depth=[2, 3]),
        "search.depth = 3: convolution 3 of 3 does not fit: 28x28 -> 12x12 -> 4x4, and a 5x5 filter does not fit "
        "into 4x4 with padding 0; valid depths here: at most 2",
    ),
    "an mlp too deep": (changed(search__width=4, search__depth=5), "width 4 halves to nothing at layer 4 of 5; valid"),
    "batch norm of one example": (
        changed(workload__model_args={"norm": ["none", "batch"]}),
        'search.batch_size = 1: mlp cannot train on one example (norm = "batch")',
    ),
    "an engine of plain layers": (
        changed(workload__model_args={"dropout": [0.0, 0.2], "init": "kaiming"}, lanes__engine="native"),
        "lanes.engine: native does not train the layers that workload.model_args.dropout adds; valid: auto",
    ),
    "an unknown activation": (
        changed(workload__model_args={"activation": ["tanh", "swish"]}),
        'unknown activation "swish"; valid: relu, leaky-relu, elu, gelu, silu, tanh, sigmoid',
    ),
    "a dropout of one": (
        changed(workload__model_args={"dropout": 1.0}),
        "workload.model_args.dropout = 1.0: 1.0 is out of range; valid: a share, at least 0 and below 1, as in 0.1",
    ),
    "a warm-up in updates": (
        changed(lanes={"warmup": [0.1, 500]}),
        "lanes.warmup = [0.1, 500]: 500 is out of range; valid: a share, at least 0 and below 1, as in 0.1",
    ),
    "a negative decay": (
        changed(lanes={"weight_decay": -0.1}),
        "lanes.weight_decay = -0.1: -0.1 is out of range; valid: 0 and positive numbers",
    ),
    "a rate of zero": (
        changed(lanes={"learning_rate": [0.1, 0]}),
        "lanes.learning_rate = [0.1, 0]: 0 is out of range; valid: positive numbers, as in 0.01",
    ),
    "a grid of a range of an argument": (
        changed(tuning__sampler="grid", workload__model_args={"dropout": {"low": 0.0, "high": 0.5}}),
        "workload.model_args.dropout = {low = 0.0, high = 0.5, log = false}: the grid sampler needs lists",
    ),
    "a baseline of one example with batch norm": (
        changed(
            confirm={},
            search__batch_size=32,
            workload__model_args={"norm": ["none", "batch"]},
            baseline=[OURS | {"batch_size": 1, "model_args": {"norm": "batch"}}],
        ),
        'baseline[1].batch_size = 1: mlp cannot train on one example (norm = "batch"); give larger batches',
    ),
    "another tool's dropout": (
        changed(workload__dropout_rate=0.1),
        "workload.dropout_rate: unknown key; write dropout = [0.0, 0.2] in [workload.model_args]",
    ),
    "dropout in the wrong section": (
        changed(search__dropout=0.1),
        "search.dropout: unknown key; write dropout = [0.0, 0.2] in [workload.model_args]",
    ),
    "smoothed labels of a regression": (
        changed(workload__label_smoothing=0.1),
        "workload.label_smoothing = 0.1: cubic is a regression; leave it out",
    ),
    "native with smoothed labels": (
        changed(workload={"data": "digits", "model": "mlp", "label_smoothing": 0.1}, lanes__engine="native"),
        "lanes.engine: native does not support workload.label_smoothing; valid: auto, eager",
    ),
    "another family's argument": (
        changed(workload__model_args={"kernel": 3}),
        "mlp has no such argument; valid: shape",
    ),
    "other data for the quadratic model": (
        changed(workload__model="quadratic", search__width=None, search__depth=None),
        'workload.data = "cubic": the model quadratic is for one data set; valid: quadratic',
    ),
    "another model for the quadratic data": (
        changed(workload={"data": "quadratic", "model": "mlp", "standardize": False}),
        'workload.model = "mlp": the data set quadratic is for one model; valid: quadratic',
    ),
    "a standardized quadratic": (
        quadratic(workload__standardize=True),
        "workload.standardize = true: quadratic has units of its own, so set standardize = false",
    ),
    "an engine that does not augment": (
        changed(
            workload={"data": "mnist", "model": "cnn", "metric": "accuracy", "augment": {"flip": True}},
            lanes__engine="native",
        ),
        "lanes.engine: native trains on unchanged examples, and workload.augment changes them; valid: auto, eager",
    ),
    "depth of the quadratic": (
        quadratic(search__depth=2),
        "search.depth: a quadratic model has none; leave it out",
    ),
    "a grid of ranges": (
        changed(search__width={"low": 4, "high": 8}, tuning__sampler="grid"),
        "search.width = {low = 4, high = 8, log = false}: the grid sampler needs lists",
    ),
}


@pytest.mark.parametrize(("tables", "message"), BAD.values(), ids=BAD)
def test_a_mistake_is_one_line_with_key_value_and_what_is_valid(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        check(tables, "my.toml")
    assert str(caught.value).startswith("my.toml: 1 mistake\n  ")
    assert message in str(caught.value)
    assert len(caught.value.mistakes) == 1


def test_all_mistakes_are_told_at_once() -> None:
    tables = changed(
        workload__data="minst", search__width=-1, search__optimizer="adm", budget__trials="ten", lanes__seeds=0, extra=1
    )
    with pytest.raises(SpecError, match="6 mistakes"):
        check(tables)


def test_files_that_are_no_spec(tmp_path: Path) -> None:
    (tmp_path / "wine.csv").write_text("a,b\n")
    (tmp_path / "latin.toml").write_bytes("name = 'é'".encode("latin-1"))
    for name, message in (
        ("latin.toml", "not UTF-8: byte 8"),
        ("wine.csv", r"holds data and is not a spec; `study init my.toml --data .*wine.csv` writes one for it"),
        (".", "is a directory"),
        ("none.toml", "no such file, and no shipped spec of that name; shipped: deepobs-quadratic, digits-cnn, mlp"),
    ):
        with pytest.raises(SpecError, match=message):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nfair = True", "(at line 2, column 8): fair = True; text stands in quotes, true and"),
        ("data = \u201cdigits\u201d", "data = \u201cdigits\u201d; text stands in quotes"),
        ("rate = .1", "rate = .1; text stands in quotes, true and false are in lower case"),
        ("rate = 0,1", "rate = 0,1; write one key = value in a line, lists in brackets, 0.1 for 0,1, and 1.0 for 1."),
        ("epochs: 5", "epochs: 5; write key = value, as in epochs = 5"),
        ("width = {low = 8,\n  high = 16}", "width = {low = 8,; a table in {} stands in one line, with no comma"),
        ("[search]\n[search]", "[search]; the table is there twice; write all its keys into one"),
        ("depth = 1\ndepth = 2", "depth = 2; the key is there twice; a list holds several values"),
        ("width = [8, 16\ndepth = 2", "depth = 2; a bracket, brace or quote is missing before this line"),
        ("train --epochs 5", "train --epochs 5; write key = value, as in epochs = 5"),
        ('{"name": "mine"}', "this looks like JSON; `study init` writes a spec"),
        ("storage = sqlite://me:secret@host/db", "storage = sqlite://me:***@host/db; text stands in quotes"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_syntax_is_shown_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(text)
    with pytest.raises(SpecError) as caught:
        read(tmp_path / "my.toml")
    (line,) = caught.value.mistakes
    assert line.startswith("not valid TOML: ")
    assert message in line


@pytest.mark.parametrize("name", [file.stem for file in SHIPPED.glob("*.toml")])
def test_a_shipped_spec_is_valid_and_named_after_its_file(name: str) -> None:
    found = read(name)
    assert found.name == name
    assert found.description


@pytest.mark.parametrize("name", [file.stem for file in SHIPPED.glob("*.toml")])
def test_a_resolved_spec_reads_back_as_itself(name: str) -> None:
    found = read(name)
    assert check(tomllib.loads(found.to_toml())) == found


def test_changes_replace_what_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(tomlkit.dumps(changed(budget__epochs=None, budget__updates=7)))
    found = read(file, {"budget": {"trials": 2, "epochs": 1}, "lanes": {"seeds": 2}})
    assert (found.budget.trials, found.budget.epochs, found.budget.updates, found.lanes.seeds) == (2, 1, None, 2)


def test_a_classification_is_judged_by_accuracy_and_a_regression_by_loss() -> None:
    assert check(GOOD).workload.metric == "loss"
    assert check(changed(**MNIST_CNN)).workload.metric == "accuracy"
    assert check(changed(workload={"data": "mnist", "model": "cnn", "metric": "loss"})).workload.metric == "loss"


@given(st.integers(0, 50), st.integers(1, 20), st.integers(0, 50), st.integers(1, 20))
def test_studies_with_other_root_seeds_share_no_seeds(root: int, count: int, other: int, other_count: int) -> None:
    seeds = check(changed(tuning__seed=root, lanes__seeds=count)).lane_seeds()
    others = check(changed(tuning__seed=other, lanes__seeds=other_count)).lane_seeds()
    assert len(set(seeds)) == count
    assert root == other or not set(seeds) & set(others)


def test_cells_and_rates() -> None:
    found = check(changed(search__depth={"low": 1, "high": 3}))
    assert found.cells() == 2 * 3 * 3 * 2
    assert found.rates("adam") == (*OPTIMIZERS["adam"].rates, 8)
    own = check(changed(lanes__learning_rate={"low": 0.1, "high": 1, "count": 3}))
    assert own.rates("adam") == (0.1, 1, 3)


def test_arguments_of_a_shipped_model_are_searched() -> None:
    arguments = {
        "activation": ["relu", "tanh"],
        "dropout": {"low": 0.0, "high": 0.5},
        "norm": "layer",
        "shape": "constant",
    }
    spec = check(changed(workload__model_args=arguments))
    assert check(spec.tables()) == spec
    assert spec.workload.arguments() == {"norm": "layer", "shape": "constant"}
    assert set(spec.workload.searched()) == {"model.activation", "model.dropout"}
    cell = {
        "optimizer": "sgd",
        "batch_size": 32,
        "width": 8,
        "depth": 2,
        "model.activation": "tanh",
        "model.dropout": 0.1,
    }
    config = Space(spec, "", "").configuration(cell, 0)
    assert config["model_args"] == {"norm": "layer", "shape": "constant", "activation": "tanh", "dropout": 0.1}


def test_every_shipped_file_is_packaged() -> None:
    settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["study.spec"]
    packaged = {file for pattern in patterns for file in SHIPPED.parent.glob(pattern)}
    assert packaged == {file for file in SHIPPED.rglob("*") if file.suffix in (".toml", ".j2")}
    with pytest.raises(SpecError, match=r"\(did you mean deepobs/mnist_2c2d\?\)"):
        read("mnist_2c2d")
