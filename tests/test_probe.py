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
                ["own:f: the result for an example depends on the other examples"]),
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
