"""What a spec in the names and keys of other tools is answered, and values of the wrong kind."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from study.errors import SpecError
from study.spec import check
from study.spec.explain import _ELSEWHERE, _EXAMPLES, _fields_at, _model_at
from tests.test_spec import OURS, changed

TORCH = """
name = "torch-names"
[workload]
data = "MNIST"
model = "MLP"
[search]
width = [4, 8]
depth = 1
batch_size = 64
optimizer = ["SGD", "RMSprop", "AdamW", "NAdam"]
[lanes]
lr = [0.1, 0.01, 0.001]
seeds = 2
[budget]
trials = 4
epochs = 1
[tuning]
sampler = "TPE"
time_budget_s = 3600
"""


def answers(tables: dict[str, Any]) -> list[str]:
    with pytest.raises(SpecError) as caught:
        check(tables, "my.toml")
    return list(caught.value.mistakes)


def test_names_of_torch_are_answered_with_ours() -> None:
    assert answers(tomllib.loads(TORCH)) == [
        'workload.data = "MNIST": write "mnist"',
        'workload.model = "MLP": write "mlp"',
        'search.optimizer = ["SGD", "RMSprop", "AdamW", "NAdam"]: "SGD": write "sgd"; "RMSprop": write "rmsprop"; '
        '"AdamW": write "adamw"; "NAdam": write "nadam"',
        "lanes.lr: unknown key; write learning_rate = {low = 0.001, high = 0.1, count = 5} in [lanes]",
        'tuning.sampler = "TPE": write "tpe"',
        'tuning.time_budget_s: unknown key; write timeout = "2h" in [tuning]',
    ]


ANSWERED: dict[str, tuple[dict[str, Any], str]] = {
    "punctuation": (changed(workload__data="Fashion_MNIST", workload__metric="loss"), 'write "fashion-mnist"'),
    "torch's path": (changed(search__optimizer="torch.optim.SGD"), 'search.optimizer = "torch.optim.SGD": write "sgd"'),
    "a longer name": (changed(tuning={"sampler": "TPESampler"}), "(did you mean tpe?); valid: tpe, random"),
    "a shorter name": (changed(workload__metric="acc"), "(did you mean accuracy?); valid: loss, accuracy"),
    "a key without a section": (changed(epochs=5), "epochs: unknown key; write epochs = 10 in [budget]"),
    "another section's key": (changed(search__seeds=5), "search.seeds: unknown key; write seeds = 5 in [lanes]"),
    "upper case": (changed(lanes={"Seeds": 5}), "lanes.Seeds: unknown key; write seeds = 5 in [lanes]"),
    "momentum": (
        changed(search__momentum=0.9),
        "search.momentum: unknown key; write settings = {momentum = {momentum = [0.9, 0.99]}} in [search]",
    ),
    "Ray's count": (
        changed(tuning={"num_samples": 9}),
        "tuning.num_samples: unknown key; write trials = 64 in [budget]",
    ),
    "Ray's scheduler": (changed(budget__grace_period=1), 'write scheduler = "asha" in [tuning]'),
    "GPUs": (changed(resources={"gpus": 1}), "resources.gpus: unknown key; write gpus_per_trial = 1 in [resources]"),
    "Optuna's count": (changed(tuning={"n_trials": 9}), "write trials = 64 in [budget]"),
    "a number in quotes": (changed(workload__target="0.5"), "must be a number, as in target = 0.5"),
    "a rate in quotes": (
        changed(confirm={}, baseline=[OURS | {"learning_rate": "1e-3"}]),
        "is not a finite number; write 0.001",
    ),
    "a digit for a list": (changed(workload__features="5"), 'must be a list, as in features = ["length", "width"]'),
    "a digit for a choice": (changed(workload__standardize="1"), "must be true or false, as in standardize = true"),
    "a number for a name": (
        changed(workload__exclude=[1]),
        'workload.exclude[1] = 1: must be text, as in exclude = ["date"]',
    ),
    "a number for a table": (changed(confirm={}, baseline=[1]), "baseline[1] = 1: must be a table, as in [[baseline]]"),
    "a size in quotes": (changed(search__width="8"), 'search.width = "8": "8" is not a whole number; write 8'),
    "a size with a point": (changed(search__batch_size=64.0), "64.0 is not a whole number; write 64"),
    "a list for a number": (changed(lanes={"seeds": [0, 1]}), "must be a whole number, as in seeds = 5"),
    "text for a choice": (changed(workload__standardize="yes"), "must be true or false, as in standardize = true"),
    "a batch size in quotes": (changed(search__batch_size="32"), '"32" is not a batch size; write 32'),
    "numbers in one text": (
        changed(search__width="8-16"),
        '"8-16" is not a whole number; write [8, 16], or {low = 8, high = 16} for a range',
    ),
    "W&B's choice": (
        changed(search__width={"values": [8, 16]}),
        "search.width: unknown values in a range; valid: low, high, log, as in {low = 4, high = 64, log = true}; a",
    ),
    "bounds called min and max": (
        changed(search__width={"min": 8, "max": 16}),
        "unknown max, min in a range; valid: low",
    ),
    "a log scale of rates": (
        changed(lanes={"learning_rate": {"low": 1e-4, "high": 0.1, "log": True}}),
        "lanes.learning_rate.log: rates are always spaced on a log scale; leave it out",
    ),
    "an optimizer with settings": (
        changed(search__optimizer=[{"name": "sgd", "lr": 0.1}]),
        "is not the name of an optimizer; its settings stand in [search.settings.NAME]",
    ),
    "an optimizer as a table": (changed(search__optimizer={"name": "sgd"}), "settings stand in [search.settings.NAME]"),
    "optimizers in one text": (
        changed(search__optimizer="SGD, adam"),
        'search.optimizer = "SGD, adam": write "sgd", "adam", each in quotes of its own',
    ),
    "two models": (
        changed(workload__model=["mlp", "cnn"]),
        'workload.model = ["mlp", "cnn"]: must be one name in quotes; valid: linear, mlp, cnn, quadratic',
    ),
    "no schedule": (changed(lanes={"schedule": "none"}), 'unknown schedule "none" (did you mean constant?)'),
    "Keras's split": (changed(budget__validation_split=0.2), "write split = [0.7, 0.15, 0.15] in [workload]"),
    "true for a folder": (changed(tuning={"warm_start": True}), 'must be text, as in warm_start = "results/earlier"'),
    "a home folder": (changed(workload__data="~/wine.csv"), "~/wine.csv: ~ is not read as the home folder; write /"),
    "text for a list": (changed(tuning={"objectives": "metric"}), 'must be a list, as in objectives = ["metric"]'),
    "a mistyped rate": (
        changed(lanes={"learning_rate": {"low": 0.1, "high": 1.0, "conut": 3}}),
        "lanes.learning_rate.conut: unknown key (did you mean count?); valid: low, high, count",
    ),
    "a mistyped rate of an optimizer": (
        changed(lanes={"learning_rate": {"adam": {"low": 0.1, "high": 1.0, "conut": 3}}}),
        "lanes.learning_rate.adam.conut: unknown key (did you mean count?); valid: low, high, count",
    ),
    "a name with a space": (changed(name="my study"), 'beginning with a letter or digit; write "my-study"'),
    "a file for a model": (changed(workload__model="mine.py"), "or mine:Net of mine.py"),
    "torchvision's name": (changed(workload__model="resnet18"), "or mine:Net of mine.py, torchvision:resnet18"),
    "a usual loss": (changed(workload__loss="mse"), "must be an import path, as in mine:f for the function f in"),
}


@pytest.mark.parametrize(("tables", "message"), ANSWERED.values(), ids=ANSWERED)
def test_a_mistake_is_answered_with_what_to_write(tables: dict[str, Any], message: str) -> None:
    (line,) = answers(tables)
    assert message in line
    assert len(line) < 210


def test_valid_names_are_listed_once_for_several_unknown_ones() -> None:
    (line,) = answers(changed(search__optimizer=["foo", "bar", "ADAM"]))
    assert line.count("valid: ") == 1
    assert line.index('"ADAM": write "adam"') < line.index("valid: ")


def test_examples_are_valid_and_every_key_has_one() -> None:
    for path, example in _EXAMPLES.items():
        *sections, name = path.split(".")
        assert name in _fields_at(sections), path
        field = _model_at(sections)
        assert field
        assert example != field.model_fields[name].get_default(call_default_factory=True), path


def test_other_tools_keys_are_told_once_and_are_not_ours() -> None:
    theirs = [key for keys in _ELSEWHERE.values() for key in keys.split()]
    assert len(set(theirs)) == len(theirs)
    for ours in _ELSEWHERE:
        assert ours.partition(".")[2] not in theirs
