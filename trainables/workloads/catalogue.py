"""The data sets, model families, optimizers and engines that a spec can name, with the facts for checking a spec.

Nothing here imports torch at module level: torch takes seconds to import, and a mistake in a spec should not.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from trainables.errors import ModelError
from trainables.workloads import deepobs

Task = Literal["regression", "classification"]
TASKS: tuple[Task, ...] = get_args(Task)
ENGINES = ("native", "eager", "cuda-graph", "solo")
# DeepOBS's networks for images; and all networks without a width and a depth.
DEEPOBS = ("deepobs-logreg", "deepobs-mlp", "deepobs-2c2d", "deepobs-3c3d")
SIZELESS = ("linear", "quadratic", *DEEPOBS)
FAMILIES = ("linear", "mlp", "cnn", "quadratic", *DEEPOBS)
# Of hidden layers in MLPs and CNNs: activation -> its class in torch.nn; norms; initial values of the weights.
ACTIVATIONS = {
    "relu": "ReLU",
    "leaky-relu": "LeakyReLU",
    "elu": "ELU",
    "gelu": "GELU",
    "silu": "SiLU",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
}
NORMS = ("none", "batch", "layer")
INITS = ("torch", "kaiming", "xavier", "orthogonal")


@dataclass(frozen=True)
class Facts:
    """Properties of a data set, known before it is loaded.

    Attributes:
        task: regression or classification.
        in_shape: shape of one example's inputs.
        out_features: outputs of a model: numbers to be predicted, or classes.
        train, validation, test: examples in each split.
        about: one line for people.
        classes: names of a user's classes; empty if they are numbers.
        warnings: what looks wrong with a user's data.
        baselines: metric -> its value on a user's validation split without learning; empty if it is not known.
        columns: names of the inputs of a user's table, in their order; empty if they have none.
    """

    task: Task
    in_shape: tuple[int, ...]
    out_features: int
    train: int
    validation: int
    test: int
    about: str
    classes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    baselines: Mapping[str, float] = field(default_factory=dict)
    columns: tuple[str, ...] = ()

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Facts:
        """From fields as JSON keeps them."""
        values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}
        return cls(**values)


CATALOGUE: dict[str, Facts] = {
    "cubic": Facts("regression", (2,), 1, 10_000, 2_000, 2_000, "y = x1^2 + 14 x2^3, x1 ~ N(-3, 1), x2 ~ N(10, 1)"),
    "linear": Facts("regression", (10,), 1, 100, 100, 100, "scikit-learn's make_regression, 3 informative of 10"),
    "digits": Facts("classification", (1, 8, 8), 10, 1_077, 360, 360, "scikit-learn's handwritten digits, 8x8"),
    "mnist": Facts("classification", (1, 28, 28), 10, 60_000, 5_000, 5_000, "handwritten digits, 28x28"),
    "fashion-mnist": Facts("classification", (1, 28, 28), 10, 60_000, 5_000, 5_000, "clothes, 28x28"),
    "kmnist": Facts("classification", (1, 28, 28), 10, 60_000, 5_000, 5_000, "cursive Japanese, 28x28"),
    "cifar10": Facts("classification", (3, 32, 32), 10, 50_000, 5_000, 5_000, "colour photographs, 32x32"),
    "quadratic": Facts(
        "regression",
        (deepobs.DIMENSIONS,),
        deepobs.DIMENSIONS,
        deepobs.TRAIN,
        deepobs.TEST,
        deepobs.TEST,
        "DeepOBS's quadratic problem in 100 dimensions; validation and test are the same points",
    ),
}


@dataclass(frozen=True)
class OptimizerFacts:
    """Properties of an optimizer.

    Attributes:
        rates: (lowest, highest) learning rate of the default grid, for losses of order one.
        settings: names and default values of what a spec can change, under torch.optim's names.
        solo: whether torch's own class runs, lane by lane, because there is no rule over lanes.
        eager: whether only torch computes the rule over lanes, since the native kernel lacks it.
    """

    rates: tuple[float, float]
    settings: Mapping[str, float] = field(default_factory=dict)
    solo: bool = False
    eager: bool = False


SOLO_RATES = (1e-4, 1e-1)
_ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
_DECAY = {"weight_decay": 0.0}  # of rules that decay parameters themselves; before others it is added to gradients

OPTIMIZERS: dict[str, OptimizerFacts] = {
    # Plain steepest descent has two names: the textbook one and that of torch.optim.
    "gradient-descent": OptimizerFacts((1e-4, 1.0)),
    "sgd": OptimizerFacts((1e-4, 1.0)),
    "momentum": OptimizerFacts((1e-5, 0.1), {"momentum": 0.9}),
    "nesterov": OptimizerFacts((1e-5, 0.1), {"momentum": 0.9}),
    "adagrad": OptimizerFacts((1e-3, 1.0), {"eps": 1e-10}),
    "rmsprop": OptimizerFacts((1e-5, 0.1), {"alpha": 0.99, "eps": 1e-8}),
    "adadelta": OptimizerFacts((1e-2, 10.0), {"rho": 0.9, "eps": 1e-6}),
    "adam": OptimizerFacts((1e-5, 0.1), _ADAM),
    "adamw": OptimizerFacts((1e-5, 0.1), {**_ADAM, "weight_decay": 0.01}),
    "amsgrad": OptimizerFacts((1e-5, 0.1), _ADAM),
    "adamax": OptimizerFacts((1e-5, 0.1), _ADAM),
    "nadam": OptimizerFacts((1e-5, 0.1), {**_ADAM, "momentum_decay": 4e-3}),
    "radam": OptimizerFacts((1e-5, 0.1), _ADAM),
    # Without a torch.optim class, or newer; the eager engine trains them.
    "sgdw": OptimizerFacts((1e-5, 0.1), {"momentum": 0.9, **_DECAY}, eager=True),
    "lion": OptimizerFacts((1e-6, 1e-2), {"beta1": 0.9, "beta2": 0.99, **_DECAY}, eager=True),
    "adan": OptimizerFacts((1e-5, 0.1), {"beta1": 0.98, "beta2": 0.92, "beta3": 0.99, "eps": 1e-8}, eager=True),
    "lamb": OptimizerFacts((1e-5, 0.1), {**_ADAM, "eps": 1e-6, **_DECAY}, eager=True),
    "adafactor": OptimizerFacts((1e-4, 1.0), {"d": 1.0, **_DECAY}, eager=True),
    "muon": OptimizerFacts((1e-4, 1.0), {"momentum": 0.95, **_ADAM, **_DECAY}, eager=True),
    "prodigy": OptimizerFacts((0.01, 100.0), {**_ADAM, **_DECAY}, eager=True),
    "schedule-free-sgd": OptimizerFacts((1e-3, 10.0), {"momentum": 0.9}, eager=True),
    "schedule-free-adamw": OptimizerFacts((1e-5, 0.1), {**_ADAM, **_DECAY}, eager=True),
    # Classes of torch.optim that no rule covers. SparseAdam is for sparse gradients, which no network here has.
    "ASGD": OptimizerFacts(SOLO_RATES, solo=True),
    "LBFGS": OptimizerFacts((1e-2, 1.0), solo=True),
    "Rprop": OptimizerFacts((1e-5, 0.1), solo=True),
}
RULES = tuple(name for name, facts in OPTIMIZERS.items() if not facts.solo)
SOLO = tuple(name for name, facts in OPTIMIZERS.items() if facts.solo)

# Settings that say which share of the past is kept.
_SHARES = ("momentum", "beta1", "beta2", "beta3", "alpha", "rho")


def settings_of(name: str) -> Mapping[str, float]:
    """The settings of a shipped optimizer that a spec can change, with their default values."""
    facts = OPTIMIZERS[name]
    return class_settings(_torch_class(name)) if facts.solo else facts.settings


def refused(name: str, setting: str, value: float) -> str | None:
    """Why a shipped optimizer does not take a value of a setting; None if it does."""
    if name.startswith("schedule-free") and setting in ("momentum", "beta1") and value == 0:
        return "0 leaves no average to evaluate; valid: above 0, below 1"
    return class_refuses(_torch_class(name), setting, value) if OPTIMIZERS[name].solo else rule_refuses(setting, value)


def rule_refuses(setting: str, value: float) -> str | None:
    """Why an update rule does not take a value of a setting; None if it does."""
    if setting in _SHARES:
        return None if 0 <= value < 1 else f"{value:g} is not a share; valid: from 0, below 1"
    return None if value >= 0 else f"{value:g} is below 0"


def class_settings(kind: Any) -> dict[str, float]:
    """The settings of a class like those of torch.optim: its arguments whose defaults are numbers, without lr."""
    arguments = inspect.signature(kind).parameters.items()
    numbers = {name: each.default for name, each in arguments if isinstance(each.default, int | float)}
    return {name: value for name, value in numbers.items() if name != "lr" and not isinstance(value, bool)}


def class_refuses(kind: Any, setting: str, value: float) -> str | None:
    """Why a class like those of torch.optim does not take a value of a setting; None if it does."""
    import torch

    try:
        kind([torch.nn.Parameter(torch.zeros(1, 1))], **{setting: value})
    except (ValueError, TypeError) as error:
        return str(error)
    return None


def _torch_class(name: str) -> Any:
    import torch

    return getattr(torch.optim, name)


def conv_output_size(size: int, kernel: int, *, stride: int = 1, padding: int = 0) -> int:
    """Height, or width, of the output of a convolution or pooling: floor((size - kernel + 2 padding) / stride) + 1.

    Args:
        size: height, or width, of the input, in pixels.
        kernel: height, or width, of the filter, in pixels.
        stride: pixels from one position of the filter to the next.
        padding: pixels added on either side.

    Raises:
        ModelError: if the filter does not fit into the padded image.
    """
    if size + 2 * padding < kernel:
        raise ModelError(f"a {kernel}x{kernel} filter does not fit into {size}x{size} with padding {padding}")
    return (size - kernel + 2 * padding) // stride + 1


def cnn_sizes(in_shape: tuple[int, ...], *, depth: int, kernel: int = 5, padding: int = 0) -> list[tuple[int, int]]:
    """Heights and widths of the image before the first and after each (convolution, pooling) of a CNN.

    Raises:
        ModelError: if the inputs are not images, or too small for the depth.
    """
    if len(in_shape) != 3:
        raise ModelError(f"a CNN needs images (channels, height, width); these inputs have shape {in_shape}")
    sizes = [(in_shape[1], in_shape[2])]
    for layer in range(depth):
        try:
            after = [conv_output_size(size, kernel, padding=padding) for size in sizes[-1]]
            height, breadth = (conv_output_size(size, 2, stride=2) for size in after)
        except ModelError as error:
            trace = " -> ".join(f"{h}x{w}" for h, w in sizes)
            raise ModelError(f"convolution {layer + 1} of {depth} does not fit: {trace}, and {error}") from error
        sizes.append((height, breadth))
    return sizes


def mlp_widths(width: int, depth: int, shape: str = "halving") -> list[int]:
    """Units of each hidden layer of an MLP: halved from one to the next, or constant.

    Raises:
        ModelError: if halving leaves a layer without units.
    """
    widths = [width >> layer if shape == "halving" else width for layer in range(depth)]
    if 0 in widths:
        raise ModelError(f"width {width} halves to nothing at layer {widths.index(0) + 1} of {depth}")
    return widths
