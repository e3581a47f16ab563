"""The best network of a study: exported, read back, trained again, and trained by the printed lines."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import study
from analysis.results import load
from study.cli import main
from study.errors import UsageError
from study.results.export import Setting, export, fill, usage
from study.results.recipe import recipe
from tests.fakes.world import World
from tests.test_spec import changed
from trainables.config import Augmentation, Budget, TrialConfig
from trainables.tune import trainable
from trainables.workloads import data

SMALL: dict[str, Any] = {
    "lanes": {"rates": 3, "seeds": 2, "extensions": 0, "refine": 0},
    "confirm": {"top": 1, "seeds": 6},
    "tuning": {"sampler": "random"},
}
DIGITS = changed(
    workload={"data": "digits", "model": "cnn", "model_args": {"kernel": 3}},
    search={"width": 4, "depth": 1, "batch_size": 32, "optimizer": "adam"},
    budget={"trials": 1, "epochs": 3},
    recording={"predictions": True},
    **SMALL,
)
CUBIC = changed(
    search={"width": 8, "depth": 1, "batch_size": 64, "optimizer": "nesterov"},
    budget={"trials": 1, "epochs": 2},
    **SMALL | {"lanes": SMALL["lanes"] | {"schedule": "cosine", "warmup": 0.1, "weight_decay": 1e-4, "clip_norm": 1.0}},
)


def made(tables: dict[str, Any], folder: Path) -> Path:
    with World(folder, tables) as world:
        world.finish()
    return world.results()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(DIGITS, tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def cubic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tables = CUBIC | {"confirm": {"top": 1, "seeds": 6, "weights_mib": 0.0}}
    return made(tables, tmp_path_factory.mktemp("cubic"))


def recorded(folder: Path, lane: int) -> tuple[np.ndarray, np.ndarray]:
    """The recorded predictions of a confirmed lane: classes and probabilities."""
    found = load(folder / "confirm").predictions.query("lane == @lane").sort_values("example")
    return found["predicted"].to_numpy(), found["probability"].to_numpy()


@pytest.mark.long
def test_exported_networks_predict_what_was_recorded_from_raw_images(digits: Path, tmp_path: Path) -> None:
    lanes = load(digits / "confirm").lanes
    best = lanes.sort_values(["validation_accuracy", "seed"], ascending=[False, True]).iloc[0]
    classes, probabilities = recorded(digits, int(best["lane"]))
    raw = data.load("digits").test.inputs
    for kind in ("pt", "pt2"):
        files = export(digits, tmp_path / f"model.{kind}")
        assert [file.name for file in files] == [f"model.{kind}", f"model.{kind}.md"]
    torch.save(raw, tmp_path / "raw.pt")
    program = "import sys, torch; from pathlib import Path; assert not any('trainables' in p for p in sys.modules)\n"
    program += "network = torch.export.load('model.pt2').module(); found = network(torch.load('raw.pt')).softmax(1)\n"
    program += "torch.save(found.detach(), 'found.pt'); assert 'trainables' not in sys.modules"
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True)
    outside = torch.load(tmp_path / "found.pt")
    with torch.no_grad():
        for found in (outside, *(study.model(each)(raw).softmax(1) for each in (digits, tmp_path / "model.pt"))):
            assert (found.argmax(1).numpy() == classes).all()
            np.testing.assert_allclose(found.amax(1), probabilities, atol=1e-6)
    card = (tmp_path / "model.pt.md").read_text()
    assert f"seed {best['seed']}" in card
    assert "trained again" not in card
    assert "[search]" in card
    assert 'study.model("model.pt")' in card
    assert 'torch.export.load("model.pt2")' in (tmp_path / "model.pt2.md").read_text()


def test_a_network_without_kept_weights_is_trained_again_bit_for_bit(
    cubic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirmed = load(cubic / "confirm").lanes
    assert confirmed["weights"].isna().all()
    setting = Setting.of(cubic)
    lane = setting.lane
    (same,) = confirmed[confirmed["seed"] == lane["seed"]].to_dict("records")
    for name in ("validation_loss", "test_loss"):
        assert lane[name] == same[name] == pytest.approx(confirmed[name].min(), rel=1)
    assert lane["validation_loss"] == confirmed["validation_loss"].min()
    raw, ours = data.load("cubic").test, data.load("cubic", standardize=True).test
    with torch.no_grad():
        outputs = setting.module()(raw.inputs)
    scale = raw.targets.std() / ours.targets.std()
    assert float((outputs - raw.targets).square().mean() / scale**2) == pytest.approx(lane["test_loss"], rel=1e-3)
    export(cubic, tmp_path / "model.pt")
    with torch.no_grad():
        assert torch.equal(study.model(tmp_path / "model.pt")(raw.inputs), outputs)
    card = (tmp_path / "model.pt.md").read_text()
    assert "trained again" in card
    assert "| python " in card  # versions of the study
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        with redirect_stdout(StringIO()) as out:
            exec(code, {})
        assert out.getvalue().startswith(("tensor([[", "test loss "))


@pytest.mark.parametrize("name", ["digits", "cubic"])
def test_the_printed_lines_reach_the_stated_score(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    printed = CliRunner().invoke(main, ["best", str(folder)]).output
    facts = json.loads(CliRunner().invoke(main, ["best", str(folder), "--json"]).output)
    assert printed == f"# {facts['text']}\n\n{facts['code']}\n"
    scores = []
    for seed in range(4):
        with redirect_stdout(StringIO()) as out:
            exec(printed.replace("manual_seed(0)", f"manual_seed({seed})"), {})
        scores.append(float(out.getvalue().split()[-1]))
    mean = np.exp(np.mean(np.log(scores))) if name == "cubic" else np.mean(scores)
    assert facts["low"] < mean < facts["high"]


def config(**changes: Any) -> TrialConfig:
    usual: dict[str, Any] = {
        "optimizer": "adam",
        "batch_size": 300,
        "width": 4,
        "depth": 1,
        "data": "digits",
        "model": "mlp",
    }
    return TrialConfig(**{**usual, "rates": (1e-2, 1e-2, 1), **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"optimizer": "sgd"}, "torch.optim.SGD(network.parameters(), lr=0.01)"),
        (
            {"settings": {"beta1": 0.8}},
            "torch.optim.Adam(network.parameters(), lr=0.01, eps=1e-08, betas=(0.8, 0.999))",
        ),
        ({"label_smoothing": 0.1}, "loss = F.cross_entropy(network(x), y, label_smoothing=0.1)"),
        ({"model_args": {"dropout": 0.1}}, "width=4, depth=1, dropout=0.1)"),
        ({"model_args": {"init": "kaiming"}}, "width=4, depth=1, init='kaiming')"),
        ({"axes": {"ema": [0.9]}}, "AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9))"),
        ({"optimizer": "muon"}, "named('muon').reference("),
        ({"optimizer": "schedule-free-sgd"}, "optimizers[0].average()"),
        ({"optimizer": "LBFGS", "settings": {"max_iter": 2}}, "optimizer.step(closure)"),
        ({"optimizer": "tests.user_code:Lion"}, "named('tests.user_code:Lion', code='')"),
        ({"dtype": "float64"}, ").double()"),
        ({"augment": Augmentation(rotate=5.0)}, "augment = Augment(rotate=5.0, mean=data.mean, std=data.std)"),
        ({"budget": Budget(epochs=1, drop_last=True)}, "torch.randperm(1077)[:900]"),
        (
            {"score": "tests.user_code:certain", "loss": "tests.user_code:smoothed"},
            "function('tests.user_code:smoothed'",
        ),
        (
            {"data": "quadratic", "model": "quadratic", "standardize": False, "width": 0, "depth": 0},
            "build('quadratic'",
        ),
    ],
)
def test_the_printed_lines_of_every_kind_of_setting_run(changes: dict[str, Any], expected: str) -> None:
    made = config(**changes)
    setting = Setting(None, None, made, {})  # type: ignore[arg-type]
    lines = recipe(made, setting.network(), setting.data, 3)
    assert expected in lines
    ast.parse(lines)
    with redirect_stdout(StringIO()) as out:
        exec(lines, {})
    assert "test loss" in out.getvalue()


def test_kept_weights_of_a_user_model_include_its_buffers() -> None:
    normed = config(model="tests.user_code:Normed", weights=True, seeds=(0, 1))
    trial = trainable(normed.model)(asdict(normed))
    (*_, lane) = trial.train()["payload"].lanes
    network = Setting(None, None, normed, {}).network()  # type: ignore[arg-type]
    fill(network, lane["weights"])
    stack = trial.run.stack
    assert torch.equal(torch.cat([each.flatten() for each in network.parameters()]), stack.parameters[1])
    buffers = dict(network.named_buffers())
    assert buffers.keys() == stack.extras.keys() != set()
    assert all(torch.equal(buffers[name], extra[1]) for name, extra in stack.extras.items())


def test_what_cannot_be_exported_is_refused_with_advice(digits: Path, tmp_path: Path) -> None:
    for to, message in (
        ("model.zip", r"ends with no known format; valid: pt, pt2, onnx"),
        ("missing/model.pt", r"there is no folder .*missing; make it first"),
    ):
        with pytest.raises(UsageError, match=message):
            export(digits, tmp_path / to)
    (tmp_path / "other.pt").write_bytes(b"nothing")
    torch.save({"state": {}}, tmp_path / "state.pt")
    (tmp_path / "empty.pt").touch()
    for name, why in (("other", "UnpicklingError"), ("state", "KeyError"), ("empty", "EOFError")):
        with pytest.raises(UsageError, match=rf"not a file of `study export --format pt` \({why}\)$") as raised:
            study.model(tmp_path / f"{name}.pt")
        assert raised.value.__suppress_context__
    assert len(list(tmp_path.iterdir())) == 3


def test_the_card_loads_a_file_by_its_format_whatever_its_name() -> None:
    assert 'torch.export.load("best.bin")' in usage("best.bin", "pt2", "mlp", (2,), "float32")
    lines = usage("best.bin", "pt", "nets:Net", (2, 3), "float64", ["a", "b"])
    assert 'study.model("best.bin")  # needs the module nets\n' in lines
    assert "x = torch.zeros(1, 2, 3, dtype=torch.float64)" in lines
    assert "classes = ['a', 'b']\n" in lines
