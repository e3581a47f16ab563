"""Networks that know nothing of this project: by the names of their arguments, and torchvision's."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from study.errors import SpecError
from study.spec import check
from tests.bundles import TABLES
from trainables.usercode.importing import UserCodeError
from trainables.workloads import models
from trainables.workloads.adapting import OTHER_NAMES, Named, own_call

HERE = "tests.test_adapting"
ready = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


class Tutorial(nn.Module):
    """As tutorials have it."""

    def __init__(self, input_size: int, hidden_size: int = 500, num_classes: int = 10) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(input_size, hidden_size), nn.Linear(hidden_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.fc1(x.flatten(1)).relu())
        return out


class Convolutions(nn.Module):
    def __init__(self, in_channels: int = 3, channels: int = 8, num_layers: int = 2, n_classes: int = 10) -> None:
        super().__init__()
        sizes = [in_channels, *[channels] * num_layers]
        self.body = nn.ModuleList(nn.Conv2d(*pair, 3, padding=1) for pair in pairwise(sizes))
        self.head = nn.Linear(channels, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.body:
            x = layer(x).relu()
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Fixed(nn.Module):
    """Has the shapes of one data set in it."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(x.flatten(1))
        return out


class Listed(nn.Module):
    """Layer sizes as a list, which is the commonest signature of an MLP."""

    def __init__(self, in_dim: int, hidden: list[int], num_classes: int = 10, bias: bool = True) -> None:
        super().__init__()
        sizes = [in_dim, *hidden]
        layers = (nn.Linear(*pair, bias=bias) for pair in pairwise(sizes))
        self.layers = nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], num_classes))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class Listless(Listed):
    def __init__(
        self, in_dim: int, p_drop: float, n_heads: int, hidden: int = 4, num_classes: int = 10, bias: bool = True
    ) -> None:
        super().__init__(in_dim, [hidden] * n_heads, num_classes, bias)


class Sizes(nn.Module):
    def __init__(self, n_in: int, sizes: list[int], activation: str, n_out: int) -> None:
        super().__init__()


def passes_on(num_classes: int, **others: Any) -> nn.Module:
    return Tutorial(64, num_classes=num_classes, **others)


def fails(width: int, scale: float = 1.0) -> nn.Module:
    raise TypeError("no")


def styled(in_channels: int, act: type[nn.Module] = nn.ReLU, text: str = "a a") -> None:
    pass


def takes_all(**given: Any) -> nn.Module:
    assert set(given) == {"in_shape", "out_features", "width"}
    return Tutorial(64, given["width"], given["out_features"])


def built(name: str, **sizes: Any) -> list[tuple[int, ...]]:
    """Shapes of the parameters."""
    network = models.build(f"{HERE}:{name}", (1, 8, 8), 10, **sizes)
    return [tuple(parameter.shape) for parameter in network.parameters()]


def test_arguments_are_matched_by_their_usual_names() -> None:
    assert built("Tutorial", width=16)[::2] == [(16, 64), (10, 16)]
    assert built("Tutorial")[0] == (500, 64)
    assert built("Convolutions", depth=3)[::2] == [(8, 1, 3, 3), (8, 8, 3, 3), (8, 8, 3, 3), (10, 8)]
    assert built("Convolutions", channels=4)[0] == (4, 1, 3, 3)
    assert built("Fixed") == [(10, 64), (10,)]
    assert built("passes_on", hidden_size=7)[0] == (7, 64)
    assert built("takes_all", width=5)[0] == (5, 64)


def refused(name: str, **sizes: Any) -> str:
    with pytest.raises(UserCodeError) as raised:
        built(name, **sizes)
    return str(raised.value)


def test_what_cannot_be_matched_is_answered_with_an_adapter() -> None:
    assert refused("Sizes", width=8, depth=2).splitlines() == [
        f"{HERE}:Sizes(n_in, sizes, activation, n_out): cannot be called with in_shape, out_features, width, depth: "
        f"nothing says what sizes, activation should be and it has no argument for width, depth. "
        f'Adapt it in {HERE}.py, and write model = "{HERE}:adapted"; '
        "replace each ... by an expression of in_shape, out_features, width, depth:",
        "      import torch",
        "      def adapted(in_shape, out_features, width, depth):",
        "          return Sizes(n_in=torch.Size(in_shape).numel(), n_out=out_features, sizes=..., activation=...)",
    ]
    told = refused("Fixed", width=8)
    assert "Fixed(): cannot be called with in_shape, out_features, width: it has no argument for width" in told
    assert told.endswith("          return Fixed()")
    assert "import torch" not in told
    assert "sizes=..., activation=...)" in refused("Sizes")


def adapted_by(message: str, names: dict[str, Any]) -> Any:
    """The function that a message advises to write."""
    exec(dedent(message.partition("\n")[2]), names)
    return names["adapted"]


def test_an_adapter_works() -> None:
    network = adapted_by(refused("Tutorial", width=8, depth=2), {"Tutorial": Tutorial})((1, 8, 8), 10, 8, 2)
    assert network(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_a_list_of_layer_sizes_is_refused_with_an_adapter() -> None:
    told = refused("Listed", hidden=[32, 16])
    assert "Listed: hidden = [32, 16]: a value of model_args is a number, text, true or false, not a list" in told
    assert "with width and depth in [search] and no hidden in model_args" in told
    network = adapted_by(told, {"Listed": Listed})((1, 8, 8), 10, width=6, depth=2)
    assert [tuple(each.shape) for each in network.parameters()][::2] == [(6, 64), (6, 6), (10, 6)]


def test_an_adapter_does_not_make_layer_sizes_of_a_list_of_text() -> None:
    told = refused("Sizes", sizes=["relu", "tanh"], activation="relu")
    assert (
        "no sizes in model_args; replace each ... by an expression of in_shape, out_features, activation, width" in told
    )
    assert "sizes=..., activation=activation, n_out=out_features)" in told


@pytest.mark.parametrize("sizes", [{"width": 8}, {"hidden": 8}])
def test_an_error_in_a_model_shows_the_call_and_an_adapter(sizes: dict[str, int]) -> None:
    told = refused("Listed", **sizes)
    assert "raised TypeError: Value after * must be an iterable, not int [test_adapting.py:" in told
    assert "the call was Listed(in_dim=64, hidden=8, num_classes=10, bias=True): arguments are matched by name" in told
    assert "and hidden may be a list" in told
    assert ("no hidden in model_args" in told) == ("hidden" in sizes)
    assert len(list(adapted_by(told, {"Listed": Listed})((1, 8, 8), 10, width=6, depth=2).parameters())) == 6


def test_an_adapter_does_not_guess_which_of_several_numbers_is_a_list() -> None:
    told = refused("Listed", hidden=8, bias=3)
    assert "one of them may have another meaning" in told
    assert "hidden=hidden, num_classes=out_features, bias=bias)" in told


def test_an_error_in_a_model_with_our_names_has_no_adapter() -> None:
    told = refused("fails", width=8)
    assert told.endswith("; the call was fails(width=8, scale=1.0)")


def test_the_call_of_a_model_has_defaults_and_names_of_what_is_searched() -> None:
    given = {"in_shape": (1, 8, 8), "out_features": 10, "width": Named("width")}
    calls = {
        "Tutorial": "Tutorial(input_size=64, hidden_size=width, num_classes=10)",
        "passes_on": "passes_on(num_classes=10, width=width)",
        "Fixed": "Fixed()",
        "styled": "styled(in_channels=1, act=ReLU, text='a a')",
    }
    for name, call in calls.items():
        assert own_call(f"{HERE}:{name}", given) == f"{HERE}:{call}"


def test_docs_list_the_names_of_arguments() -> None:
    page = Path(__file__).parents[1].joinpath("docs", "user-code.md").read_text()
    for ours, names in OTHER_NAMES.items():
        assert ", ".join(f"`{name}`" for name in [ours, *names.split()]) + " |" in page


def test_a_list_in_a_list_of_a_spec_is_refused_by_the_model(tmp_path: Path) -> None:
    tables = {
        **TABLES,
        "workload": {"data": "digits", "model": f"{HERE}:Listed", "model_args": {"hidden": [[4, 2], [8]]}},
    }
    with pytest.raises(SpecError, match=r"workload.model: .*Listed: hidden = \[4, 2\]: .*a list. .* as \"4-2\". Or a"):
        check({**tables, "search": {"batch_size": [32], "optimizer": "adam"}}, "own.toml", tmp_path)


def test_an_invalid_argument_of_a_model_is_reported_by_its_key(tmp_path: Path) -> None:
    """The model, which needs it, is not tried without it."""
    tables = {**TABLES, "workload": {"data": "digits", "model": f"{HERE}:Listed", "model_args": {"hidden": {"low": 1}}}}
    with pytest.raises(SpecError) as raised:
        check({**tables, "search": {"batch_size": [32], "optimizer": "adam"}}, "own.toml", tmp_path)
    (mistake,) = raised.value.mistakes
    assert mistake.startswith("workload.model_args.hidden: a range needs high")


def test_a_network_that_is_built_already_is_refused() -> None:
    told = refused("ready")
    assert told == (
        f"{HERE}:ready: is a Sequential that is built already; every lane needs a new one: name a class, or a function "
        "that returns it"
    )


def test_torchvision_networks_by_name() -> None:
    grey, coloured = (models.build("torchvision:resnet18", (n, 32, 32), 5).eval() for n in (1, 3))
    for network, channels in ((grey, 1), (coloured, 3)):
        assert network(torch.zeros(2, channels, 32, 32)).shape == (2, 5)
    for path, shape, sizes, told in (
        ("resnet19", (3, 32, 32), {}, "torchvision has no such network for classes; similar: resnet1"),
        ("resnet18", (4,), {}, "needs images (1 or 3 channels, height, width); these inputs have shape (4,)"),
        ("resnet18", (3, 32, 32), {"width": 8}, "have sizes of their own; leave out search.width"),
        ("resnet18", (3, 32, 32), {"heads": 8}, "raised TypeError: ResNet.__init__() got an unexpected keyword"),
    ):
        with pytest.raises(UserCodeError) as raised:
            models.build(f"torchvision:{path}", shape, 5, **sizes)
        assert told in str(raised.value)


def test_timm_is_needed_for_its_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserCodeError, match=r"timm:resnet18: needs the package timm; `pip install timm`"):
        models.build("timm:resnet18", (3, 32, 32), 5)


def test_timm_networks_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in of timm that takes what timm takes."""

    def create_model(name: str, num_classes: int, in_chans: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Conv2d(in_chans, num_classes, 32), torch.nn.Flatten())

    stand_in = ModuleType("timm")
    vars(stand_in).update(list_models=lambda: ["resnet18"], create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", stand_in)
    assert models.build("timm:resnet18", (1, 32, 32), 5)(torch.zeros(2, 1, 32, 32)).shape == (2, 5)
    with pytest.raises(UserCodeError, match="timm has no such network for classes; similar: resnet18"):
        models.build("timm:resnet19", (1, 32, 32), 5)


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "data", "sizes"),
    [("torchvision:squeezenet1_1", "mnist", {}), (f"{HERE}:Tutorial", "digits", {"width": [4, 8]})],
)
def test_check_accepts_networks_of_others(model: str, data: str, sizes: dict[str, Any], tmp_path: Path) -> None:
    """In lanes, those with dropout too."""
    search = {"batch_size": [32], "optimizer": "adam"} | sizes
    spec = check({**TABLES, "workload": {"data": data, "model": model}, "search": search}, "own.toml", tmp_path)
    assert not any("lane by lane" in each for each in spec.workload.user_code.notes)


@pytest.mark.long
def test_check_prints_the_adapter(tmp_path: Path) -> None:
    tables = {**TABLES, "workload": {"data": "digits", "model": f"{HERE}:Sizes"}}
    with pytest.raises(SpecError, match=r"(?s)own.toml: 1 mistake\n.*def adapted\(in_shape, out_features, width"):
        check(tables, "own.toml", tmp_path)
