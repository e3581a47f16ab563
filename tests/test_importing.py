"""Modules of a bundle are imported beside others of their names."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from study.usercode import bundle
from tests.bundles import NET, write
from trainables import tune
from trainables.usercode.importing import UserCodeError, copy_on_node, digest_of, hash_of, imported


def copied(folder: Path, *paths: str, beside: Path | None = None) -> Any:
    """What is copied for some import paths, with the current folder elsewhere or `beside`."""
    return bundle._copied(dict.fromkeys(paths, "workload.model"), (), [folder, *([beside] if beside else [])])


def test_one_file_with_two_names_is_two_modules(tmp_path: Path) -> None:
    write(tmp_path, {"nets/residual": "from nets import parts", "nets/__init__": "", "nets/parts": ""})
    found = copied(tmp_path / "nets", "residual:Net", "nets.residual:Net", beside=tmp_path)
    assert set(found.files) == {"residual.py", "nets/__init__.py", "nets/residual.py", "nets/parts.py"}
    assert imported("residual:__file__", str(found.folder)) == str(found.folder / "residual.py")
    assert imported("nets.residual:__file__", str(found.folder)) == str(found.folder / "nets" / "residual.py")


def test_bundle_module_may_have_the_name_of_an_installed_one(tmp_path: Path) -> None:
    write(tmp_path, {"own": "from yaml import thing", "yaml": "thing = 3"})
    import yaml

    assert imported("own:thing", str(tmp_path)) == 3
    assert sys.modules["yaml"] is yaml


def test_every_kind_of_import_looks_in_the_bundle_first(tmp_path: Path) -> None:
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


def test_error_messages_use_plain_module_names(tmp_path: Path) -> None:
    write(tmp_path, {"own": "import helper", "helper": "from other import nothing", "other": ""})
    write(tmp_path, {"lost": "import nets.gone", "nets/__init__": ""})
    with pytest.raises(UserCodeError, match=r"own failed: ImportError: cannot import .* from 'other'") as own:
        imported("own:f", str(tmp_path))
    assert str(own.value).endswith("[own.py:1]")
    with pytest.raises(UserCodeError, match=r"lost failed: ModuleNotFoundError: No module named 'nets\.gone'"):
        imported("lost:f", str(tmp_path))


def test_bundles_do_not_share_modules_with_each_other_or_the_process(
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


def test_copy_on_node_returns_the_code_of_the_study_or_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with pytest.raises(
        UserCodeError, match=r"code/own.py: differs from the code that the study began with; restore the old code"
    ):
        copy_on_node(str(code), digest)


def test_worker_uses_the_bundle_of_each_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
