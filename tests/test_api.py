"""The project's Python API: what is public, and studies run from scripts and notebooks."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType
from typing import Any

import jupyter_client
import nbclient
import nbformat
import pyarrow.parquet as pq
import pytest

import analysis
import study
import trainables.tune
from analysis.schema import FOLDERS
from study import api
from tests.conftest import write_tables
from tests.test_readme import DOCS, ROOT
from trainables import storage as files

PUBLIC: tuple[ModuleType, ...] = (study, analysis, trainables.tune)
NOTEBOOK = ROOT / "examples" / "first_study.ipynb"
# Four cells, each trained for two seconds.
SPEC = """
spec = study.check({
    "name": "mine",
    "workload": {"data": "linear", "model": "linear"},
    "search": {"batch_size": [1, 8, 32, "full"], "optimizer": "sgd"},
    "lanes": {"rates": 2, "seeds": 2, "extensions": 0, "refine": 0},
    "budget": {"trials": 3, "seconds": 2},
    "tuning": {"sampler": "random"},
    "confirm": False,
})
"""


def public() -> list[tuple[str, Any]]:
    return [(f"{module.__name__}.{name}", getattr(module, name)) for module in PUBLIC for name in module.__all__]


def own_methods(kind: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, member in vars(kind).items():
        if isinstance(member, property):
            member = member.fget
        if inspect.isfunction(member) and not name.startswith("_"):
            yield name, member


@pytest.mark.parametrize(("name", "what"), public(), ids=[name for name, _ in public()])
def test_what_is_public_is_documented_and_typed(name: str, what: Any) -> None:
    members = own_methods(what) if inspect.isclass(what) else [(name, what)]
    assert inspect.getdoc(what), name
    assert what.__doc__, name  # its own, not its base's
    for member, function in members:
        assert function.__doc__, f"{name}.{member}"
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty, f"{name}.{member}"
        untyped = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"]
        assert not untyped, f"{name}.{member}"


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_names_are_listed_in_one_place(module: ModuleType) -> None:
    assert module.__all__ == sorted(module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)
    if module is not trainables.tune:  # the others import their names when they are first used
        assert dir(module) == module.__all__


def test_what_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="No study attribute nothing"):
        study.nothing  # noqa: B018
    with pytest.raises(ImportError):
        exec("from study import planned_trials")


def test_the_page_on_python_names_all_of_study_and_nothing_else() -> None:
    ((code, prose),) = re.findall(r"^# In Python\n+```python\n(.*?)```\n(.*)", DOCS["python"], re.DOTALL)
    (imported,) = re.findall(r"^from study import (.*)$", code, re.MULTILINE)
    named = set(re.findall(r"`(\w+)[`(]", prose)) - {"study", "analysis", "__all__"}
    assert sorted(named | set(imported.split(", "))) == study.__all__


@pytest.mark.long
def test_the_pages_about_what_is_public_show_all_of_it(tmp_path: Path) -> None:
    (line,) = re.findall(r"^api: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    command = line.replace("$(BIN)", str(Path(sys.executable).parent)).replace("build/api", str(tmp_path))
    subprocess.run(["bash", "-c", command], cwd=ROOT, check=True, capture_output=True)
    for module in PUBLIC:
        page = (tmp_path / f"{module.__name__.replace('.', '/')}.html").read_text(encoding="utf-8")
        assert re.findall(r'<section id="(\w+)">', page) == module.__all__
        assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=.https?:", page)  # it opens offline


def test_changes_to_a_spec_may_be_of_sections_and_of_single_keys() -> None:
    spec = study.read("quick", {"name": "mine", "budget": {"updates": 7}, "confirm": False})
    assert (spec.name, spec.budget.updates, spec.budget.epochs, spec.confirm) == ("mine", 7, None, None)
    assert spec.budget.trials == study.read("quick").budget.trials
    with pytest.raises(study.SpecError, match="nonsense: unknown key"):
        study.read("quick", {"nonsense": 3})


@pytest.mark.parametrize("start", [lambda at: study.run("quick", at), study.resume], ids=["run", "resume"])
def test_a_uri_of_no_store_is_told(
    start: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        study.StorageError,
        match="the results folder: 1 mistake\n  'ftp://host/mine' cannot hold results; valid: a folder",
    ):
        start("ftp://host/mine")
    assert list(tmp_path.iterdir()) == []


def test_a_resume_that_adds_nothing_keeps_the_report(
    make_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, words_only: None
) -> None:
    """Writing it takes most of the time of such a resume; once anything that it shows has changed it is written."""
    folder = make_study(widths=(8,), depths=(2,))
    files.write_text(folder / "spec.toml", study.read("quick", {"confirm": False}).to_toml())
    outcome, page = study.Outcome(folder, 4, 4, 4), folder / "report/index.html"
    monkeypatch.setattr(api, "_connect_and_run", lambda *_: outcome)

    def kept() -> bool:
        before = page.read_text().replace("</html>", "<!-- seen --></html>") if page.exists() else ""
        if before:
            page.write_text(before)
        ended = study.resume(folder)
        assert ended.report == page
        assert ended.verdict[0].startswith("Adam")
        return page.read_text() == before

    assert not kept()  # there was none
    assert kept()
    provenance = json.loads((folder / "provenance.json").read_text())
    files.write_text(folder / "provenance.json", json.dumps(provenance | {"finished": None}))
    assert not kept()
    write_tables(
        folder, trials=[row | {"started": 1.0} for row in pq.read_table(folder / FOLDERS["trials"]).to_pylist()]
    )
    assert not kept()
    assert kept()
    page.write_text(page.read_text().replace("</body>", "drawing it failed</body>"))
    assert not kept()

    def unknown(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("analysis.report.page.metadata.version", unknown)  # where a job brought the code
    assert not kept()


def test_what_may_be_run_is_a_spec_its_tables_or_where_it_is() -> None:
    for wrong in ({"name": "mine"}, "no-such-spec", Path("no-such.toml")):
        with pytest.raises(study.SpecError):
            study.run(wrong)


# Without `if __name__ == "__main__"`, as people write scripts.
SCRIPT = f"""
import os, signal, threading, time
import ray
import analysis, study
{SPEC}
def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]

before = handlers()
first = study.run(spec)
assert (first.ended, first.planned, first.interrupted) == (3, 3, False)
assert first.report == first.folder / "report" / "index.html" and first.report.is_file()
assert handlers() == before
try:
    study.run(spec, str(first.folder))
except study.StorageError as error:
    assert "already holds a study" in str(error)

ray.init(log_to_driver=False)
try:
    study.run(spec, "other")
except study.ClusterError as error:
    assert "call ray.shutdown() first" in str(error)
assert not os.path.exists("other") and ray.is_initialized()
ray.shutdown()
before = handlers()  # Ray has set one

def interrupt():
    while not (first.folder.parent / "mine-2" / "optuna.journal").is_file():
        time.sleep(0.1)
    time.sleep(3)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
try:
    study.run(spec)
except KeyboardInterrupt as stop:
    assert isinstance(stop, study.Interrupted) and stop.outcome.ended < 3, stop
    assert stop.outcome.folder.name == "mine-2"
    assert handlers() == before
    print(stop)
    left = stop.outcome.folder
again = study.resume(left, more=1)
assert (again.folder, again.ended, again.planned) == (left, 4, 4)
assert len(analysis.load(again.folder).trials) == 4
"""


@pytest.mark.nightly
@pytest.mark.usefixtures("one_worker")
def test_a_script_runs_studies_one_after_another_whatever_happens(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    found = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False
    )
    assert found.returncode == 0, found.stderr
    assert re.fullmatch(r"[0-2] of 3 trials ended; study\.resume\('.*/results/mine-2'\) continues it\n", found.stdout)
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["mine", "mine-2"]
    assert "Traceback" not in found.stderr
    assert "Warning" not in found.stderr


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a notebook's kernel starts, which has this code on its path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / ".ipython"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    return tmp_path


def test_the_notebook_is_kept_with_its_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    first, *code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not first.outputs  # imports
    assert all(cell.outputs and all(output.output_type != "error" for output in cell.outputs) for cell in code)
    assert "/home/" not in NOTEBOOK.read_text()
    assert "/tmp/" not in NOTEBOOK.read_text()


@pytest.mark.nightly
@pytest.mark.usefixtures("one_worker")
def test_the_notebook_shows_progress_frames_and_figures(in_folder: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=280).execute()
    _, size, run, outcome, frame, figure = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert size[0].text == "4 cells, each with 6 learning rates x 3 seeds\n"
    # One output each: the search, a line, the confirmation; and nothing of Ray's, Optuna's or tqdm's.
    assert [output.output_type for output in run] == ["display_data"] * 3
    shown = [output.data["text/plain"] for output in run]
    assert shown[0].startswith("4/4 trials (4 completed)")
    assert shown[1].startswith("confirming ")
    assert shown[2].startswith("3/3 trials (3 completed)")  # the best two, and the best batch
    assert "best validation loss" in run[0].data["text/html"]
    assert "fresh seeds" in outcome[0].text
    assert "<table" in frame[0].data["text/html"]
    assert "adam" in frame[0].data["text/html"]
    assert figure[0].data["image/png"]
    assert (in_folder / "results/first-study/report/index.html").is_file()


def answer(client: Any, asked: str) -> dict[str, Any]:
    """What came of a cell; a kernel that was slow to start answers earlier questions too."""
    while (said := client.get_shell_msg(timeout=120))["parent_header"].get("msg_id") != asked:
        pass
    content: dict[str, Any] = said["content"]
    return content


@pytest.mark.nightly
@pytest.mark.usefixtures("one_worker")
def test_interrupting_a_notebook_leaves_a_study_that_goes_on(in_folder: Path) -> None:
    manager, client = jupyter_client.manager.start_new_kernel(kernel_name="python3")
    try:
        asked = client.execute(f"import study\n{SPEC}\nstudy.run(spec)")
        journal = in_folder / "results/mine/optuna.journal"
        deadline = time.monotonic() + 120
        while not (journal.is_file() and '"batch_size"' in journal.read_text()):  # a trial was suggested
            assert time.monotonic() < deadline
            time.sleep(0.1)
        manager.interrupt_kernel()
        said = answer(client, asked)
        assert (said["status"], said["ename"]) == ("error", "Interrupted")
        assert re.fullmatch(r"[0-2] of 3 trials ended; study\.resume\('.*/results/mine'\) continues it", said["evalue"])
        assert set(analysis.load(in_folder / "results/mine").trials["outcome"]) <= {"interrupted", "completed"}
        asked = client.execute("assert study.resume('results/mine').ended == 3")
        assert answer(client, asked)["status"] == "ok"
        assert set(analysis.load(in_folder / "results/mine").trials["outcome"]) == {"completed"}
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.nightly
@pytest.mark.usefixtures("one_worker")
@pytest.mark.timeout(600)
def test_the_wheel_holds_everything_that_a_study_needs(tmp_path: Path) -> None:
    """Built, installed beside this environment's packages, and run where this code cannot be found."""
    source, empty, place = tmp_path / "source", tmp_path / "empty", tmp_path / "installed"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    packages = {
        line for line in listed.stdout.splitlines() if line.split("/")[0] in ("study", "trainables", "analysis")
    }
    for name in (*packages, "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    uv = str(Path(sys.executable).with_name("uv"))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def call(*command: str, folder: Path = tmp_path) -> str:
        found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert found.returncode == 0, (command, found.stdout, found.stderr)
        return found.stdout

    call(uv, "build", "--wheel", "--out-dir", str(tmp_path), str(source))
    (wheel,) = tmp_path.glob("*.whl")
    assert packages <= set(zipfile.ZipFile(wheel).namelist())
    call(sys.executable, "-m", "venv", "--without-pip", str(place))
    python = str(place / "bin/python")
    call(uv, "pip", "install", "--python", python, "--no-deps", str(wheel))
    (installed,) = place.glob("lib/python*/site-packages")
    (installed / "dependencies.pth").write_text(str(Path(import_module("click").__file__ or "").parents[1]) + "\n")
    empty.mkdir()
    assert Path(call(python, "-c", "import study; print(study.__file__)", folder=empty).strip()).is_relative_to(place)
    command = str(place / "bin/study")
    said = call(command, "run", "quick", "--trials", "2", "--epochs", "1", folder=empty)
    assert said.endswith("results: results/quick\nreport:  results/quick/report/index.html\n")
    assert (empty / "results/quick/report/index.html").is_file()
    assert "mnist-cnn" in call(command, "list", folder=empty)
