"""Models, data sets, optimizers, losses and scores of users: run as ours do, and told of when they cannot."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomlkit
import torch

import analysis
from study.errors import SpecError
from study.spec import check, read
from study.usercode import bundle, client
from tests import brought
from tests.nodes import Nodes, why_not
from trainables import data, models, tune
from trainables.criterion import Criterion
from trainables.engines.choose import choose
from trainables.lanes.batches import Batches
from trainables.lanes.equality import prove
from trainables.lanes.stack import Lane, Stack, grid
from trainables.lanes.train import advance
from trainables.rules import RULES, Rule, named
from trainables.usercode.importing import UserCodeError, copy_on_node, digest_of, hash_of, imported
from trainables.usercode.vmap_support import support_of

MODELS = ["Residual", "Vision", "Normed", "Dropped", "plain"]
SCALED = Rule("scaled", RULES["adam"].unit_update, torch.optim.Adam, (1e-3, 1e-1), ("exp_avg", "exp_avg_sq"),
              {"beta1": 0.8, "beta2": 0.99, "eps": 1e-8}, RULES["adam"].columns)  # fmt: skip
IMAGES = Criterion("classification")


@pytest.fixture(scope="module")
def digits() -> data.Data:
    return data.load("digits", standardize=True, dtype=torch.float64)


def maker(name: str, found: data.Data, **arguments: Any) -> Any:
    size = {"width": 8, "depth": 2, **arguments}
    return partial(models.build, f"tests.brought:{name}", found.in_shape, found.out_features, **size)


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "tests.test_foreign:SCALED", "tests.brought:Lion"])
@pytest.mark.parametrize("model", MODELS)
def test_lanes_equal_what_each_computes_alone(model: str, optimizer: str, digits: data.Data) -> None:
    pairs = grid(1e-3, 1e-2, 2, [3, 4])
    proof = prove(maker(model, digits), named(optimizer), digits, 50, pairs, IMAGES, model)
    assert proof.difference < 1e-8
    expected = {"Dropped": "loop", "plain": "eager"}.get(model, "vmap")
    assert proof.engine == ("solo" if named(optimizer).solo else expected)


@pytest.mark.parametrize("model", MODELS[:4])
def test_a_network_comes_out_the_same_however_it_is_cut(model: str, digits: data.Data) -> None:
    """Interrupted or not, in passes or all at once, alone or among others: the same numbers."""
    build, all_lanes = maker(model, digits), grid(1e-3, 1e-2, 2, [0, 1])

    def trained(those: list[Lane], at_once: int = 0, pauses: tuple[int, ...] = ()) -> Stack:
        stack = Stack.build(build, those, RULES["adam"], torch.float64, torch.device("cpu"))
        for stop in (*pauses, 30):
            saved, stack = (
                stack.state_dict(),
                Stack.build(build, those, RULES["adam"], torch.float64, torch.device("cpu")),
            )
            stack.load_state_dict(saved)
            stack.at_once = at_once or len(those)
            engine = choose(build, digits.in_shape, IMAGES, 100, stack, None, "auto")
            advance(stack, engine, Batches(digits.train, 100, stack), stop)
        return stack

    whole = trained(all_lanes)
    cut = trained(all_lanes, pauses=(7, 19))
    assert torch.equal(whole.parameters, cut.parameters)
    assert all(torch.equal(whole.extras[name], cut.extras[name]) for name in whole.extras)
    for other, rows in ((trained(all_lanes, at_once=3), slice(None)), (trained(all_lanes[2:3]), slice(2, 3))):
        assert torch.allclose(whole.parameters[rows], other.parameters, rtol=1e-8, atol=1e-8)
        for name, extra in whole.extras.items():
            assert torch.allclose(extra[rows].double(), other.extras[name].double(), rtol=1e-8, atol=1e-8)


def test_batch_norm_trains_on_batches_and_is_evaluated_by_its_running_means(digits: data.Data) -> None:
    build = maker("Normed", digits)
    stack = Stack.build(build, [Lane(0.01, 0), Lane(0.01, 1)], RULES["sgd"], torch.float64, torch.device("cpu"))
    engine = choose(build, digits.in_shape, IMAGES, 100, stack, None, "auto")
    advance(stack, engine, Batches(digits.train, 100, stack), 5)
    assert stack.extras["body.1.num_batches_tracked"].tolist() == [5, 5]
    before = {name: extra.clone() for name, extra in stack.extras.items()}
    found = engine.evaluate(stack, slice(0, 2), digits.validation)
    classes, _ = engine.predict(stack, slice(0, 2), digits.validation)
    engine.noise(stack, slice(0, 2), digits.train.head(200))
    assert all(torch.equal(stack.extras[name], extra) for name, extra in before.items())
    net = build().double().eval()
    state = dict(zip(models.trained(net), stack.leaves(slice(1, 2)), strict=True))
    net.load_state_dict({name: leaf[0].detach() for name, leaf in state.items()} | {n: e[1] for n, e in before.items()})
    outputs = net(digits.validation.inputs).detach()
    loss = torch.nn.functional.cross_entropy(outputs, digits.validation.targets)
    assert found["loss"][1].item() == pytest.approx(loss.item(), rel=1e-9)
    assert torch.equal(classes[1], outputs.argmax(1))


def test_what_is_frozen_stays_as_it_was(digits: data.Data) -> None:
    build = maker("Residual", digits, frozen=True)
    stack = Stack.build(build, [Lane(0.01, 0), Lane(0.01, 1)], RULES["sgd"], torch.float64, torch.device("cpu"))
    first = {name: extra.clone() for name, extra in stack.extras.items()}
    assert set(first) == {"first.weight", "first.bias"}  # they differ from seed to seed
    engine = choose(build, digits.in_shape, IMAGES, 100, stack, None, "auto")
    before = stack.parameters.clone()
    advance(stack, engine, Batches(digits.train, 100, stack), 5)
    assert all(torch.equal(stack.extras[name], extra) for name, extra in first.items())
    assert not torch.equal(before, stack.parameters)


@pytest.mark.parametrize(
    ("model", "together", "whole", "draws"),
    [("Residual", True, False, False), ("Vision", True, False, False), ("Normed", True, True, False),
     ("Dropped", False, True, True)],
)  # fmt: skip
def test_how_lanes_can_run_is_found_out(
    model: str, together: bool, whole: bool, draws: bool, digits: data.Data
) -> None:
    support = support_of(maker(model, digits), digits.train.inputs[:4])
    assert (support.together, support.whole, support.draws) == (together, whole, draws)
    assert bool(support.why) is not together


def test_losses_and_scores_of_users_are_those_of_each_example() -> None:
    outputs, targets = torch.randn(3, 7, 2, dtype=torch.float64), torch.randn(1, 7, 2, dtype=torch.float64)
    own = Criterion("regression", "tests.brought:huber", "tests.brought:near")
    found = own.losses(outputs, targets)
    assert found.shape == (3, 7)
    assert torch.equal(found[2], brought.huber(outputs[2], targets[0]))
    assert own.scored
    assert torch.equal(own.scores(outputs, targets)[1], brought.near(outputs[1], targets[0]))
    with pytest.raises(UserCodeError, match=r"tests.brought:plain: raised TypeError"):
        Criterion("regression", "tests.brought:plain").losses(outputs, targets)


TABLES: dict[str, Any] = {
    "name": "own",
    "workload": {"data": "digits", "model": "own:Net"},
    "search": {"width": [4, 8], "depth": 1, "batch_size": [32], "optimizer": "adam"},
    "budget": {"trials": 2, "epochs": 1},
}
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, in_shape, out_features, width, depth):
        super().__init__()
        self.last = nn.Linear(torch.Size(in_shape).numel(), out_features)

    def forward(self, x):
        return self.last(x.flatten(1))
"""
PAIR = "(torch.randn(20, 3), torch.randn(20))"
ALL = "import torch\ndef f(): return {n: PAIR for n in ('train', 'validation', 'test')}\n" + NET
WRONG: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "no module": ("", {"model": "other:Net"}, ["other:Net: there is no module other", "beside the spec"]),
    "its import": ("import nowhere\n" + NET, {}, ["own:Net: importing own failed: ModuleNotFoundError", "'nowhere'"]),
    "syntax": (NET + "\ndef f(:\n", {}, ["workload.model: own:Net: importing own failed: SyntaxError", "own.py"]),
    "name": (NET.replace("class Net", "class Nets"), {}, ["own:Net: own has no Net (did you mean Nets?)"]),
    "exits": ("raise SystemExit(3)\n", {}, ["own:Net: importing own failed: SystemExit: 3"]),
    "dies": ("import os; os._exit(3)\n", {}, ["workload.model: own:Net: importing own:Net ended the process with 3"]),
    "signature": (NET.replace(", depth)", ")"), {}, ["own:Net(in_shape, out_features, width): cannot be called with",
                                                    "got an unexpected keyword argument 'depth'"]),
    "no module returned": ("def Net(**sizes): return 3\n", {}, ["own:Net: returned int; expected a torch.nn.Module"]),
    "shape": (NET.replace("numel(), out_features)", "numel(), 3)"), {},
              ["own:Net: gives (16, 3) for 16 examples of (1, 8, 8)", "expected (16, 10)"]),
    "not finite": (NET.replace("return self", "return float('nan') * self"), {},
                   ["own:Net: gives values that are not finite before any update"]),
    "raises": (NET.replace("return self", "raise KeyError('x')\n        return self"), {},
               ["own:Net: cannot be run and differentiated: KeyError: 'x' [own.py:"]),
    "memory": ("hold = bytearray(1 << 42)\n", {},
               ["workload.model: own:Net: importing own:Net took more memory than the"]),
    "nothing to train": ("from torch import nn\ndef Net(**sizes): return nn.Flatten()\n", {},
                         ["own:Net: its module has no parameters that require gradients"]),
    "data": ("def f(): return [1]\n" + NET, {"data": "own:f"}, ["workload.data: own:f: returned list; expected"]),
    "splits": (f"import torch\ndef f(): return {{'train': {PAIR}}}\n" + NET, {"data": "own:f"},
               ["own:f: returned a dict of train; expected"]),
    "nan": (ALL.replace("PAIR", "(torch.full((9, 3), float('nan')), torch.zeros(9))"), {"data": "own:f"},
            ["own:f: inputs of train are not all finite"]),
    "redraw": (ALL.replace("PAIR", PAIR), {"data": "own:f", "redraw": True},
               ["workload.redraw = true: own:f takes no seed"]),
    "loss": ("def f(o, t): return o.sum()\n" + NET, {"loss": "own:f"},
             ["workload.loss: own:f: gave () for 16 examples; expected a callable"]),
    "negative": ("def f(o, t): return -1 - o[:, 0].abs()\n" + NET, {"loss": "own:f"},
                 ["workload.loss: own:f: gives -", "not negative"]),
    "coupled": ("def f(o, t): return (o[:, 0] - o[:, 0].mean()) ** 2\n" + NET, {"loss": "own:f"},
                ["own:f: what it gives for an example depends on the others"]),
    "score": ("def f(o, t): return 3 + o[:, 0].abs()\n" + NET, {"metric": "own:f"},
              ["workload.metric: own:f: gives 3", "numbers from 0 to 1"]),
    "optimizer": ("class f: pass\n" + NET, {"optimizer": "own:f"},
                  ["search.optimizer: own:f: is f; expected a subclass"]),
}  # fmt: skip


# Each starts a process that imports torch.
FAST = ("dies", "shape")


@pytest.mark.parametrize(
    "wrong", [each if each in FAST else pytest.param(each, marks=pytest.mark.long) for each in WRONG]
)
def test_what_is_wrong_with_a_users_module_is_one_message(wrong: str, tmp_path: Path) -> None:
    module, changes, told = WRONG[wrong]
    (tmp_path / "own.py").write_text(module)
    tables = {**TABLES, "workload": {**TABLES["workload"], **changes}}
    if optimizer := tables["workload"].pop("optimizer", ""):
        tables["search"] = {**TABLES["search"], "optimizer": optimizer}
    with pytest.raises(SpecError) as raised:
        check(tables, "own.toml", tmp_path)
    for words in told:
        assert words in str(raised.value), raised.value
    assert "own.toml: 1 mistake" in str(raised.value)
    assert "Traceback" not in str(raised.value)


def test_a_module_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text("import time\ntime.sleep(600)\n")
    patience = client._stage

    def hurried(file: Path) -> dict[str, Any] | None:
        found = patience(file)
        return found and {**found, "seconds": 1.0}

    monkeypatch.setattr(client, "_stage", hurried)
    with pytest.raises(SpecError, match=r"own:Net: importing own:Net took more than 1 s; do less there"):
        check(TABLES, "own.toml", tmp_path)


@pytest.mark.long
def test_arguments_of_a_model_are_searched_and_what_is_resolved_reads_the_same(tmp_path: Path) -> None:
    tables = {
        **TABLES,
        "workload": {"data": "digits", "model": "tests.brought:Vision", "model_args": {"heads": [1, 2]}},
        "search": {**TABLES["search"], "optimizer": ["adam", "tests.brought:Lion"],
                   "settings": {"tests.brought:Lion": {"beta1": [0.8, 0.9]}}},
    }  # fmt: skip
    spec = check(tables, "own", tmp_path)
    assert set(spec.dimensions()) == {"optimizer", "batch_size", "width", "depth", "model.heads"}
    assert spec.cells() == 2 * 2 * (1 + 2)
    file = tmp_path / "spec.toml"
    file.write_text(spec.to_toml())
    assert read(file) == spec
    assert spec.rates("tests.brought:Lion") == (1e-4, 0.1, 8)
    with pytest.raises(SpecError, match=r"search.settings.*: tests.brought:Lion has no such setting; valid: beta1"):
        check({**tables, "search": {**tables["search"], "settings": {"tests.brought:Lion": {"momentum": 0.9}}}})
    with pytest.raises(SpecError, match=r"lanes.engine: compiled does not train tests.brought:Lion"):
        check({**tables, "lanes": {"engine": "compiled"}})


OWN: dict[str, Any] = {
    "name": "own",
    "workload": {"data": "digits", "model": "brought:Normed"},
    "search": {"width": [4, 8], "depth": [1], "batch_size": [32, "full"], "optimizer": ["adam", "brought:Lion"]},
    "lanes": {"rates": 2, "seeds": 2, "extensions": 0},
    "budget": {"trials": 4, "epochs": 1, "min_updates": 5},
    "tuning": {"sampler": "qmc", "scheduler": "none"},
    "confirm": {"top": 1, "seeds": 2},
}


def study(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("study")), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def bring(folder: Path, name: str = "own.toml", **changes: Any) -> Path:
    """A folder with a spec and the module beside it, and the current folder elsewhere."""
    (folder / "mine").mkdir()
    (folder / "elsewhere").mkdir()
    shutil.copy(Path(brought.__file__), folder / "mine" / "brought.py")
    tables = {section: {**values, **changes.get(section, {})} if isinstance(values, dict) else values
              for section, values in OWN.items()}  # fmt: skip
    if tables["confirm"]["top"] == 0:
        del tables["confirm"]
    (folder / "mine" / name).write_text(tomlkit.dumps(tables))
    return folder / "elsewhere"


DATA = ALL[: ALL.index(NET)].replace("PAIR", "(torch.randn(40, 3), torch.arange(40) % N)")


def write(folder: Path, files: Mapping[str, str]) -> Path:
    """A folder with modules: name without .py -> text."""
    for name, text in files.items():
        file = folder / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def copied(folder: Path, *paths: str, beside: Path | None = None) -> Any:
    """What is copied for some import paths, with the current folder elsewhere or `beside`."""
    return bundle._copied(dict.fromkeys(paths, "workload.model"), (), [folder, *([beside] if beside else [])])


def test_all_that_a_module_imports_is_copied_and_nothing_else(tmp_path: Path) -> None:
    lazily = "import os, torch, helper\ndef f():\n    from lazy import g\n    import_module('named.deep')\n"
    modules = {"own": lazily, "helper": "import own, deeper.inner as inner", "lazy": "import broken", "broken": "def ("}
    modules |= {
        "named/deep": "from . import other\nimport nowhere",
        "named/other": "",
        "deeper/inner": "",
        "unused": "",
    }
    write(tmp_path, modules)
    (tmp_path / "deeper" / "weights.pt").write_bytes(b"some")
    (tmp_path / "weights.pt").write_bytes(b"some")
    found = copied(tmp_path, "own:Net")
    assert not found.mistakes
    assert set(found.files) == {
        "own.py", "helper.py", "lazy.py", "broken.py", "named/deep.py", "named/other.py", "deeper/inner.py",
        "deeper/weights.pt",
    }  # fmt: skip
    assert {str(file.relative_to(found.folder)) for file in found.folder.rglob("*.*")} == set(found.files)
    assert found.sources["deeper"] == str(tmp_path / "deeper")


def test_one_file_under_two_names_is_two_modules(tmp_path: Path) -> None:
    write(tmp_path, {"nets/residual": "from nets import parts", "nets/__init__": "", "nets/parts": ""})
    found = copied(tmp_path / "nets", "residual:Net", "nets.residual:Net", beside=tmp_path)
    assert set(found.files) == {"residual.py", "nets/__init__.py", "nets/residual.py", "nets/parts.py"}
    assert imported("residual:__file__", str(found.folder)) == str(found.folder / "residual.py")
    assert imported("nets.residual:__file__", str(found.folder)) == str(found.folder / "nets" / "residual.py")


@pytest.mark.parametrize("name", ["code", "random", "analysis"])
def test_a_name_that_is_taken_is_told_of(name: str, tmp_path: Path) -> None:
    write(tmp_path, {"own": f"from {name} import thing", "fine": "import torch", name: ""})
    for path in ("own:Net", f"{name}:Net"):
        (told,) = copied(tmp_path, path).mistakes
        assert told.startswith(f"workload.model: {path}: {name} is ")
        assert f"{name}" in told.split("(")[1].split(")")[0]  # the file that is imported instead
        assert told.endswith(f"which is imported in the place of {tmp_path / name}.py; rename yours")
    assert not copied(tmp_path, "fine:Net").mistakes


def test_module_of_a_bundle_may_have_the_name_of_an_installed_one(tmp_path: Path) -> None:
    write(tmp_path, {"own": "from yaml import thing", "yaml": "thing = 3"})
    import yaml

    assert imported("own:thing", str(tmp_path)) == 3
    assert sys.modules["yaml"] is yaml


def test_imports_of_every_kind_look_in_the_bundle_first(tmp_path: Path) -> None:
    write(
        tmp_path, {"nets/__init__": "", "nets/layers": "from . import parts", "nets/parts": "n = 7", "helper": "n = 8"}
    )
    own = [
        "import importlib, importlib.util, json, nets.layers, nets.parts as parts",
        "from importlib import import_module",
        "from nets import layers",
        "lazy = lambda: __import__('helper').n",
        "dynamic = importlib.import_module('nets.' + 'parts').n",
        "relative = import_module('.parts', nets.__name__).n",
        "numbers = [nets.layers.parts.n, parts.n, layers.parts.n, dynamic, relative]",
        "found = importlib.util.find_spec('json') is json.__spec__",
        "def later():\n    import helper\n    return helper.n",
    ]
    write(tmp_path, {"own": "\n".join(own)})
    code = str(tmp_path)
    assert imported("own:numbers", code) == [7] * 5
    assert imported("own:later", code)() == imported("own:lazy", code)() == 8
    assert imported("own:found", code)
    assert not {"own", "nets", "helper"} & set(sys.modules)


def test_messages_name_modules_of_a_bundle_as_users_do(tmp_path: Path) -> None:
    write(tmp_path, {"own": "import helper", "helper": "from other import nothing", "other": ""})
    write(tmp_path, {"lost": "import nets.gone", "nets/__init__": ""})
    with pytest.raises(UserCodeError, match=r"own failed: ImportError: cannot import .* from 'other'") as own:
        imported("own:f", str(tmp_path))
    assert str(own.value).endswith("[own.py:1]")
    with pytest.raises(UserCodeError, match=r"lost failed: ModuleNotFoundError: No module named 'nets\.gone'"):
        imported("lost:f", str(tmp_path))


def test_large_files_of_a_package_are_left_out_with_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MOST_BYTES", 1 << 20)
    write(tmp_path, {"nets/__init__": ""})
    for name, size in (("a-large", 1 << 21), ("b-small", 10), ("z-small", 10)):
        (tmp_path / "nets" / name).write_bytes(bytes(size))
    found = copied(tmp_path, "nets:Net")
    assert set(found.files) == {"nets/__init__.py", "nets/b-small", "nets/z-small"}
    (told,) = found.notes
    assert str(tmp_path / "nets" / "a-large") in told
    assert "up to 1 MiB" in told


def test_each_copy_has_modules_of_its_own_and_the_process_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in "abc":
        write(tmp_path / each, {"own": "import helper\nwhich = lambda: helper.which", "helper": f"which = {each!r}"})
    monkeypatch.syspath_prepend(str(tmp_path / "c"))
    monkeypatch.delitem(sys.modules, "own", raising=False)
    monkeypatch.delitem(sys.modules, "helper", raising=False)
    mine, path = importlib.import_module("own"), list(sys.path)
    first = imported("own:which", str(tmp_path / "a"))
    assert first() == "a"
    assert imported("own:which", str(tmp_path / "b"))() == "b"
    assert imported("own:which", str(tmp_path / "a")) is first
    assert importlib.import_module("own") is mine
    assert mine.which() == "c"
    assert sys.path == path


@pytest.mark.long
def test_two_studies_in_one_process_and_an_edited_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {**TABLES, "workload": {**TABLES["workload"], "data": "own:f"}}
    specs = []
    for number in (2, 5):
        write(tmp_path / str(number), {"own": DATA.replace("N)", f"{number})") + NET})
        specs.append(check(tables, "own.toml", tmp_path / str(number)))
    assert [spec.workload.facts.out_features for spec in specs] == [2, 5]
    for spec, number in zip(specs, (2, 5), strict=True):
        [said] = spec.copy_code(tmp_path / f"results-{number}")
        assert f"own:f has whole numbers as targets, so they are {number} classes" in said
        assert f"% {number})" in (tmp_path / f"results-{number}" / "code" / "own.py").read_text()
    write(tmp_path / "2", {"own": DATA.replace("N)", "7)") + NET})
    assert check(tables, "own.toml", tmp_path / "2").workload.facts.out_features == 7
    # The results go on with what they began with, and nothing is tried again.
    (tmp_path / "results-2" / "spec.toml").write_text(specs[0].to_toml())
    monkeypatch.setattr(client, "ask", pytest.fail)
    assert read(tmp_path / "results-2" / "spec.toml") == specs[0]
    assert bundle.edited(tmp_path / "results-2") == [tmp_path / "2" / "own.py"]
    assert bundle.edited(tmp_path / "results-5") == []


def test_workers_have_the_code_that_the_study_began_with_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = write(tmp_path / "code", {"own": ""})
    files = {"own.py": hash_of(code / "own.py")}
    (code / "inspected.json").write_text(json.dumps({"files": files}))
    digest = digest_of(files)
    assert copy_on_node(str(code), digest) == str(code)
    monkeypatch.syspath_prepend(str(tmp_path))  # as Ray has it of what was sent along
    assert copy_on_node("/gone/code", digest) == str(code)
    with pytest.raises(UserCodeError, match=r"/gone/code: the study's modules are not on this node"):
        copy_on_node("/gone/code", "other")
    (code / "own.py").write_text("changed = True")
    copy_on_node.cache_clear()
    with pytest.raises(UserCodeError, match=r"code/own.py: is not what the study began with; put it back"):
        copy_on_node(str(code), digest)


def test_a_worker_takes_each_trials_modules_from_its_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies in the folder that Ray was started in, or was imported for an earlier trial."""
    for name, outputs in (("here", 30), ("first", 10), ("second", 20)):
        write(tmp_path / name, {"worn": NET.replace("numel(), out", f"numel(), {outputs} * out")})
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    config = {"model": "worn:Net", "data": "digits", "optimizer": "sgd", "batch_size": 32, "width": 4, "depth": 1}
    config |= {"rates": (1e-3, 1e-3, 1), "seeds": (0,), "budget": {"updates": 1}}
    trial = tune.ModelTrainable({**config, "code": str(tmp_path / "first")})
    assert trial.step()["parameters"] == 100 * 65
    trial.reset_config({**config, "code": str(tmp_path / "second")})
    assert trial.step()["parameters"] == 200 * 65
    trial.reset_config(config)
    assert trial.step()["parameters"] == 300 * 65


def test_a_module_beyond_the_copy_that_was_edited_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"beyond/helping": "", "spec/own": "import helping\n" + NET})
    monkeypatch.syspath_prepend(str(tmp_path / "beyond"))
    spec = check(TABLES, "own.toml", tmp_path / "spec")
    assert spec.copy_code(tmp_path / "results") == []
    assert bundle.edited_elsewhere(tmp_path / "results") == []
    write(tmp_path, {"beyond/helping": "x = 1"})
    assert bundle.edited_elsewhere(tmp_path / "results") == [tmp_path / "beyond" / "helping.py"]


@pytest.mark.parametrize(
    "where", ["Path(__file__).with_name('table.npy')", pytest.param("'table.npy'", marks=pytest.mark.long)]
)
def test_a_file_that_is_left_behind_is_named(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = f"from pathlib import Path\nimport numpy as np\nx = np.load({where})\n"
    write(tmp_path, {"own": load + NET})
    np.save(tmp_path / "table.npy", np.zeros(3))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=r"own failed: FileNotFoundError: .*table\.npy.* into a package") as raised:
        check(TABLES, "own.toml", tmp_path)
    assert "own.toml: 1 mistake" in str(raised.value)


@pytest.mark.long
def test_files_in_a_package_and_modules_by_names_in_no_source_travel(tmp_path: Path) -> None:
    load = "from pathlib import Path\nimport numpy as np\nx = np.load(Path(__file__).with_name('table.npy'))\n"
    plugin = "import importlib\nimportlib.import_module('plu' + 'gin')\n"
    write(tmp_path, {"nets/__init__": "", "nets/own": load + plugin + NET, "plugin": "import further", "further": ""})
    np.save(tmp_path / "nets" / "table.npy", np.zeros(3))
    spec = check({**TABLES, "workload": {**TABLES["workload"], "model": "nets.own:Net"}}, "own.toml", tmp_path)
    spec.copy_code(tmp_path / "out")
    there = {str(file.relative_to(tmp_path / "out" / "code")) for file in (tmp_path / "out" / "code").rglob("*.*")}
    assert there == {"nets/__init__.py", "nets/own.py", "nets/table.npy", "plugin.py", "further.py", "inspected.json"}


@pytest.mark.nightly
@pytest.mark.usefixtures("one_worker")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "workload",
    [{"model": "brought:Residual"}, {"model": "brought:Vision", "model_args": {"heads": [1, 2]}},
     {"model": "brought:Normed"}],
    ids=["residual", "vision", "batch norm"],
)  # fmt: skip
def test_a_study_of_a_model_that_users_bring(workload: dict[str, Any], tmp_path: Path) -> None:
    """By the installed command, from a folder where nothing of it lies."""
    here = bring(tmp_path, workload=workload, budget={"trials": 2}, confirm={"top": 0})
    ran = study(here, "run", "../mine/own.toml", "--plain")
    assert ran.returncode == 0, ran.stderr
    results = analysis.load(here / "results" / "own")
    assert list(results.trials["outcome"]) == ["completed"] * 2
    assert set(results.trials["engine"]) <= {"vmap", "solo"}
    assert (here / "results/own/report/index.html").is_file()


@pytest.mark.long
@pytest.mark.usefixtures("one_worker")
@pytest.mark.timeout(600)
def test_a_study_of_all_that_users_bring(tmp_path: Path) -> None:
    """Model, data, optimizer, loss and score; it is confirmed, and goes on without what the user has by then."""
    own = {"data": "brought:waves", "model": "brought:Dropped", "metric": "brought:near", "loss": "brought:huber"}
    here = bring(tmp_path, workload=own)
    ran = study(here, "run", "../mine/own.toml", "--plain")
    assert ran.returncode == 0, ran.stderr
    assert "runs lane by lane" in ran.stderr
    out = here / "results" / "own"
    results = analysis.load(out)
    assert list(results.trials["outcome"]) == ["completed"] * 4
    assert set(results.trials["optimizer"]) == {"adam", "brought:Lion"}
    assert results.confirmation
    assert set(results.confirmation.trials["outcome"]) == {"completed"}
    assert (out / "code" / "brought.py").is_file()
    page = (out / "report" / "index.html").read_text()
    assert "brought:Lion" in page
    assert "accuracy here is the mean of brought:near" in page
    assert results.provenance["data"]["loss"] == "mean of brought:huber"
    shutil.rmtree(tmp_path / "mine")
    more = study(here, "extend", "results/own", "--trials", "1", "--plain")
    assert more.returncode == 0, more.stderr
    assert len(analysis.load(out).trials) == 5
    assert "5 of 5" in study(here, "status", "results/own").stdout


@pytest.mark.nightly
@pytest.mark.usefixtures("one_worker")
def test_a_study_goes_on_with_the_code_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the folder where the module lies, which has been edited since."""
    wider = NET.replace("nn.Linear(torch.Size(in_shape).numel(),", "nn.Sequential(nn.Linear(64, 30), nn.Linear(30,")
    wider = wider.replace("out_features)\n", "out_features))\n")
    write(tmp_path, {"own": "import helping\n" + NET, "beyond/helping": ""})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "beyond"), prepend=os.pathsep)
    tables = {**TABLES, "lanes": {"rates": 2, "seeds": 2, "extensions": 0}, "tuning": {"sampler": "qmc"}}
    (tmp_path / "own.toml").write_text(tomlkit.dumps(tables))
    module = [sys.executable, "-m", "study"]  # which has the current folder before all others
    again = partial(subprocess.run, cwd=tmp_path, capture_output=True, text=True, check=False)
    ran = again([*module, "run", "own.toml", "--plain"])
    assert ran.returncode == 0, ran.stderr
    write(tmp_path, {"own": wider, "beyond/helping": "x = 1"})
    more = again([*module, "extend", "results/own", "--trials", "2", "--plain"])
    assert more.returncode == 0, more.stderr
    begun = f"note: {tmp_path / 'own.py'} has been edited since; the study goes on with the code it began with, in "
    assert f"{begun}{tmp_path / 'results' / 'own' / 'code'}" in more.stderr
    assert f"note: {tmp_path / 'beyond' / 'helping.py'} is no part of the copy and has been edited since" in more.stderr
    trials = analysis.load(tmp_path / "results" / "own").trials
    assert list(trials["outcome"]) == ["completed"] * 4
    assert trials["parameters"].nunique() == 1
    code = tmp_path / "results" / "own" / "code" / "own.py"
    code.write_text(wider)
    refused = again([*module, "extend", "results/own", "--trials", "1", "--plain"])
    assert refused.returncode == 2
    assert f"{code}: is not what the study began with; put it back, or run what it is now into" in refused.stderr


@pytest.mark.nightly
@pytest.mark.usefixtures("one_worker")
def test_a_model_that_breaks_harms_no_other_trial(tmp_path: Path) -> None:
    here = bring(tmp_path, workload={"model": "brought:Fragile"}, budget={"epochs": 3})
    ran = study(here, "run", "../mine/own.toml", "--plain")
    assert ran.returncode == 0, ran.stderr
    trials = analysis.load(here / "results" / "own").trials.set_index("width")
    assert set(trials.loc[[4], "outcome"]) == {"completed"}
    broken = trials[trials["outcome"] == "failed"]
    assert set(broken.index) == {8}
    assert broken["error"].str.contains("the flux capacitor is empty").all()


@pytest.mark.nightly
def test_check_proves_lanes_equal_for_a_users_model(tmp_path: Path) -> None:
    said = study(bring(tmp_path), "check", "../mine/own.toml")
    assert said.returncode == 0, said.stderr
    line = next(line for line in said.stdout.splitlines() if "computes alone" in line)
    assert line.startswith("  lanes   equal what each computes alone: ")
    assert "after 20 updates of adam at batch size 32" in line
    assert "times as fast as one after another" in line


@pytest.mark.nightly
@pytest.mark.alone
@pytest.mark.timeout(600)
def test_modules_travel_to_nodes_of_a_cluster(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    here, out = bring(tmp_path), tmp_path / "out"
    with Nodes() as nodes:
        for name in ("head", "b"):
            nodes.start(name)
        command = [sys.executable, "-m", "study", "run", "../mine/own.toml", "--out", str(out), "--address", nodes.head]
        # The nodes were started elsewhere, and the package is not on their path from here.
        running = nodes.process("head", command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, _ = running.communicate(timeout=300)
        assert running.returncode == 0, said
    trials = analysis.load(out).trials
    assert list(trials["outcome"]) == ["completed"] * 4
    assert json.loads((out / "code" / "inspected.json").read_text())
    assert {file.name for file in (out / "code").iterdir()} - {"__pycache__"} == {"brought.py", "inspected.json"}
