"""Whatever is wrong with user code is one message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from study.errors import SpecError
from study.spec import check
from study.usercode import client
from tests.bundles import ALL, NET, PAIR, TABLES, write

WRONG: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "no module": ("", {"model": "other:Net"}, ["other:Net: there is no module other", "beside the spec"]),
    "its import": ("import nowhere\n" + NET, {}, ["own:Net: importing own failed: ModuleNotFoundError", "'nowhere'"]),
    "syntax": (NET + "\ndef f(:\n", {}, ["workload.model: own:Net: importing own failed: SyntaxError", "own.py"]),
    "name": (NET.replace("class Net", "class Nets"), {}, ["own:Net: own has no Net (did you mean Nets?)"]),
    "exits": ("raise SystemExit(3)\n", {}, ["own:Net: importing own failed: SystemExit: 3"]),
    "dies": ("import os; os._exit(3)\n", {}, ["workload.model: own:Net: importing own:Net ended the process with 3"]),
    "signature": (NET.replace(", depth)", ")"), {}, ["own:Net(in_shape, out_features, width): cannot be called with",
                                                    "it has no argument for depth",
                                                    "return Net(in_shape=in_shape, out_features=out_features, width="]),
    "no module returned": ("def Net(**sizes): return 3\n", {}, ["own:Net: returned int; expected a torch.nn.Module"]),
    "shape": (NET.replace("numel(), out_features)", "numel(), 3)"), {},
              ["own:Net: gives (16, 3) for 16 examples of (1, 8, 8)", "expected (16, 10)"]),
    "not finite": (NET.replace("return self", "return float('nan') * self"), {},
                   ["own:Net: gives values that are not finite before any update"]),
    "raises": (NET.replace("return self", "raise KeyError('x')\n        return self"), {},
               ["own:Net: cannot be run and differentiated with inputs of (8, 1, 8, 8): KeyError: 'x' [own.py:"]),
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
             ["workload.loss: own:f: gave () for 16 examples; expected a callable", 'own give with reduction="none"']),
    "a loss that is a class": ("from torch.nn import MSELoss as f\n" + NET, {"loss": "own:f"},
                               ["own:f: is a class, not an instance of it; expected a callable from outputs (n, out_"]),
    "a loss of one argument": ("def f(o): return o[:, 0]\n" + NET, {"loss": "own:f"},
                               ["own:f: called with outputs (16, 10) and targets (16,), it raised TypeError: f()"]),
    "a metric of scikit-learn": ("from sklearn.metrics import accuracy_score as f\n" + NET, {"metric": "own:f"},
                                 ["own:f: called with outputs (16, 10) and targets (16,), it raised ValueError"]),
    "a GPU of its own": (NET.replace("return self", "return self.cuda()"), {},
                         ["[own.py:11]; the study moves models and data to the device of a trial: take out .cuda()"]),
    "tensors on another device": (NET.replace("__()", "__()\n        self.b = torch.zeros(1, device='cuda')"), {},
                                  ["[own.py:8]; the study moves models and data to the device of a trial: take"]),
    "overwritten": (NET.replace("return self.last(x.flatten(1))", "y = self.last(x.flatten(1)).sigmoid()\n        y += "
                                "1\n        return y"), {},
                    ["modified by an inplace operation", "the gradient needs what is overwritten: write y = y + 1"]),
    "a tuple": (NET.replace("return self", "return x, self"), {}, ["own:Net: gives tuple; expected a tensor (n, out"]),
    "needs images": (ALL.replace("PAIR", PAIR).replace("return self.last(x", "return nn.Conv2d(1, 1, 1)(x"),
                     {"data": "own:f"}, ["differentiated with inputs of (8, 3): RuntimeError: Expected 3D"]),
    "a path": (NET, {"model": "./nets/own.py:Net"}, ["import path; write package.module:name, as in nets.own"]),
    "data with arguments": (ALL.replace("def f()", "def f(path, seed=0)"), {"data": "own:f"},
                            ["own:f(path, seed=0): called with seed, folder by name, it is missing a required argum"]),
    "data without return": ("def f(): pass\n" + NET, {"data": "own:f"},
                            ['own:f: returned NoneType; expected {"train": (inputs, targets), "validation": ..., "te']),
    "data in the home folder": ("def f(): return open('~/x')\n" + NET, {"data": "own:f"},
                                ["No such file or directory: '~/x' [own.py:1]; Python does not read ~ as the"]),
    "a Dataset of dicts": ("from torch.utils.data import Dataset\n\nclass C(Dataset):\n    __len__ = lambda self: 30\n"
                           "    __getitem__ = lambda self, n: {'x': n}\n\n"
                           "def f(): return {n: C() for n in ('train', 'validation', 'test')}\n" + NET,
                           {"data": "own:f"}, ["own:f: the Dataset train gives dict; expected pairs (input, target)"]),
    "negative": ("def f(o, t): return -1 - o[:, 0].abs()\n" + NET, {"loss": "own:f"},
                 ["workload.loss: own:f: gives -", "not negative"]),
    "coupled": ("def f(o, t): return (o[:, 0] - o[:, 0].mean()) ** 2\n" + NET, {"loss": "own:f"},
                ["own:f: the result for an example depends on the other examples"]),
    "score": ("def f(o, t): return 3 + o[:, 0].abs()\n" + NET, {"metric": "own:f"},
              ["workload.metric: own:f: gives 3", "numbers from 0 to 1"]),
    "layers in a list": (NET.replace("last = ", "l = [0]; self.l[0] = ").replace("last(", "l[0]("), {},
                         ["has no parameters that require gradients; give it at least one; layers in a list"]),
    "an optimizer with gradients": ("import torch\nclass f(torch.optim.SGD):\n    def step(self): "
                                    "self.param_groups[0]['params'][0] -= 1\n" + NET, {"optimizer": "own:f"},
                                    ["own:f: an update raised RuntimeError", "; put @torch.no_grad() over step"]),
    "optimizer": ("class f: pass\n" + NET, {"optimizer": "own:f"},
                  ["search.optimizer: own:f: is f; expected a subclass"]),
}  # fmt: skip


# Each starts a process that imports torch.
FAST = ("dies", "shape")


@pytest.mark.parametrize(
    "wrong", [each if each in FAST else pytest.param(each, marks=pytest.mark.long) for each in WRONG]
)
def test_probe_reports_one_mistake(wrong: str, tmp_path: Path) -> None:
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


@pytest.mark.long
def test_probe_recommends_the_lanes_of_an_optimizer_of_torch(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(NET)
    tables = {**TABLES, "search": {**TABLES["search"], "optimizer": "torch.optim:Adam"}}
    notes = check(tables, "own.toml", tmp_path).workload.user_code.notes
    assert notes == ["torch.optim:Adam runs lane by lane, which takes longer; adam computes the same in lanes"]


def test_probe_ends_a_module_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(client, "_limit", lambda stage: 1.0 if stage else client.START_SECONDS)
    with pytest.raises(SpecError, match=r"own:Net: importing own:Net took more than 1 s; do less there"):
        check(TABLES, "own.toml", tmp_path)


@pytest.mark.parametrize(
    "where", ["Path(__file__).with_name('table.npy')", pytest.param("'table.npy'", marks=pytest.mark.long)]
)
def test_probe_names_a_file_that_was_not_copied(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = f"from pathlib import Path\nimport numpy as np\nx = np.load({where})\n"
    write(tmp_path, {"own": load + NET})
    np.save(tmp_path / "table.npy", np.zeros(3))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=r"own failed: FileNotFoundError: .*table\.npy.* into a package") as raised:
        check(TABLES, "own.toml", tmp_path)
    assert "own.toml: 1 mistake" in str(raised.value)
