"""The copy of user code that a study runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from study.spec import check, read
from study.usercode import bundle, client
from tests.bundles import DATA, NET, TABLES, write
from trainables.usercode import importing


def copied(folder: Path, *paths: str, beside: Path | None = None) -> Any:
    """What is copied for some import paths, with the current folder elsewhere or `beside`."""
    return bundle._copied(dict.fromkeys(paths, "workload.model"), (), [folder, *([beside] if beside else [])])


def test_bundle_holds_all_imported_modules_and_nothing_else(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("name", ["code", "random", "analysis"])
def test_bundle_refuses_names_of_our_and_standard_modules(name: str, tmp_path: Path) -> None:
    write(tmp_path, {"own": f"from {name} import thing", "fine": "import torch", name: ""})
    for path in ("own:Net", f"{name}:Net"):
        (told,) = copied(tmp_path, path).mistakes
        assert told.startswith(f"workload.model: {path}: {name} is ")
        assert f"{name}" in told.split("(")[1].split(")")[0]  # the file that is imported instead
        assert told.endswith(f"which is imported in the place of {tmp_path / name}.py; rename yours")
    assert not copied(tmp_path, "fine:Net").mistakes


def test_bundle_leaves_out_large_files_with_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MOST_BYTES", 1 << 20)
    write(tmp_path, {"nets/__init__": ""})
    for name, size in (("a-large", 1 << 21), ("b-small", 10), ("z-small", 10)):
        (tmp_path / "nets" / name).write_bytes(bytes(size))
    found = copied(tmp_path, "nets:Net")
    assert set(found.files) == {"nets/__init__.py", "nets/b-small", "nets/z-small"}
    (told,) = found.notes
    assert str(tmp_path / "nets" / "a-large") in told
    assert "up to 1 MiB" in told


@pytest.mark.long
def test_bundles_of_two_studies_and_of_an_edited_module_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert [file for file, _ in bundle.edits(tmp_path / "results-2")] == [tmp_path / "2" / "own.py"]
    assert not list(bundle.edits(tmp_path / "results-5"))


def test_edits_names_edited_modules_beyond_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"beyond/helping": "", "spec/own": "import helping\n" + NET})
    monkeypatch.syspath_prepend(str(tmp_path / "beyond"))
    spec = check(TABLES, "own.toml", tmp_path / "spec")
    assert spec.copy_code(tmp_path / "results") == []
    assert not list(bundle.edits(tmp_path / "results"))
    write(tmp_path, {"beyond/helping": "x = 1"})
    (edit,) = bundle.edits(tmp_path / "results")
    assert edit[0] == tmp_path / "beyond" / "helping.py"
    assert edit[1].startswith("is not in the copy and has been edited")


@pytest.mark.long
def test_bundle_holds_package_files_and_dynamically_imported_modules(tmp_path: Path) -> None:
    load = "from pathlib import Path\nimport numpy as np\nx = np.load(Path(__file__).with_name('table.npy'))\n"
    plugin = "import importlib\nimportlib.import_module('plu' + 'gin')\n"
    write(tmp_path, {"nets/__init__": "", "nets/own": load + plugin + NET, "plugin": "import further", "further": ""})
    np.save(tmp_path / "nets" / "table.npy", np.zeros(3))
    spec = check({**TABLES, "workload": {**TABLES["workload"], "model": "nets.own:Net"}}, "own.toml", tmp_path)
    spec.copy_code(tmp_path / "out")
    there = {str(file.relative_to(tmp_path / "out" / "code")) for file in (tmp_path / "out" / "code").rglob("*.*")}
    assert there == {"nets/__init__.py", "nets/own.py", "nets/table.npy", "plugin.py", "further.py", "inspected.json"}


def test_a_lost_record_of_the_code_never_turns_its_check_off(tmp_path: Path) -> None:
    """Without it, the code of today would run in the place of that which the study began with."""
    write(tmp_path / "copy", {"nets/__init__": "", "nets/own": NET})
    (tmp_path / "copy/nets/table.csv").write_text("1,2")
    files = {name: importing.hash_of(tmp_path / "copy" / name) for name in ("nets/own.py", "nets/table.csv")}
    out = tmp_path / "out"
    record = {"files": files, "sources": {"nets": str(tmp_path / "copy/nets")}, "answers": {}}
    bundle.copy_to(bundle.UserCode(str(tmp_path / "copy"), record=record), out)
    (out / "provenance.json").write_text("{}")
    assert bundle.code_of(out) == out / "code"
    assert not bundle._restored(out / "code").mistakes
    assert not list(bundle.edits(out))
    (out / "code/nets/table.csv").write_text("1,3")
    assert [file for file, _ in bundle.edits(out)] == [out / "code/nets/table.csv"]
    text = (out / "code/inspected.json").read_text()
    for changed in (text[:50], text.replace('"sources"', '"xources"'), None):
        (out / "code/inspected.json").unlink() if changed is None else (out / "code/inspected.json").write_text(changed)
        assert bundle.code_of(out) == out / "code"
        (told,) = bundle._restored(out / "code").mistakes
        assert told.startswith(f"{out / 'code/inspected.json'}: is lost or damaged")
        assert bundle.inspect(TABLES, out, {}).mistakes == [told]
