"""The model families, plain `torch.nn` modules of layers that lanes can stack, and user models.

The source report's networks are points of the space: an MLP of width 64 and depth 2 is 64-32, a CNN of width 4 and
depth 2 is 4-8 channels before its 32-16 head.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.errors import ModelError
from trainables.usercode.importing import UserCodeError, is_import_path
from trainables.workloads import deepobs, deepobs_networks
from trainables.workloads.adapting import LIBRARIES, library_model, own_model
from trainables.workloads.catalogue import ACTIVATIONS, DEEPOBS, FAMILIES, cnn_sizes, mlp_widths

Builder = Callable[[], nn.Module]
# (inputs, outputs) -> a layer.
Maker = Callable[[int, int], nn.Module]
CNN_HEAD = (32, 16)


class Shift(nn.Module):
    """Subtracts a trained vector from the inputs.

    Args:
        start: initial value of the vector, (features,).
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.vector = nn.Parameter(start)

    def forward(self, x: Tensor) -> Tensor:
        """(B, features) -> (B, features)."""
        return x - self.vector


class Fixed(nn.Module):
    """A linear map that is not trained.

    Args:
        matrix: (out_features, in_features), float64; it is applied in the type of the inputs.
    """

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_features) -> (B, out_features)."""
        return F.linear(x, self.matrix.to(x))


class Residual(nn.Module):
    """Adds its inputs to the outputs of its layers."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> the same shape."""
        out: Tensor = x + self.layers(x)
        return out


@dataclass(frozen=True, kw_only=True)
class Style:
    """How an MLP or a CNN makes its hidden layers; as it is, of layers that every engine stacks.

    Attributes:
        activation: one of `catalogue.ACTIVATIONS`.
        norm: one of `catalogue.NORMS`, before the activation; after a convolution, layer norm is over the whole image.
        dropout: probability with which training sets an activation to zero.
        residual: whether each hidden layer is followed by another of its width, whose inputs are added to its outputs.
        init: initial weights, one of `catalogue.INITS`: normal for kaiming and xavier; with zeros as biases, but for
            torch's own.
    """

    activation: str = "relu"
    norm: str = "none"
    dropout: float = 0.0
    residual: bool = False
    init: str = "torch"

    def hidden(self, before: int, after: int, make: Maker = nn.Linear, second: Maker = nn.Linear) -> list[nn.Module]:
        """A hidden layer of `before` inputs and `after` outputs, with what belongs to it."""
        layers = self._activated(make(before, after), after)
        return [*layers, Residual(*self._activated(second(after, after), after))] if self.residual else layers

    def _activated(self, layer: nn.Module, width: int) -> list[nn.Module]:
        images = isinstance(layer, nn.Conv2d)
        norms: dict[str, Callable[[], nn.Module]] = {
            "batch": lambda: nn.BatchNorm2d(width) if images else nn.BatchNorm1d(width),
            "layer": lambda: nn.GroupNorm(1, width) if images else nn.LayerNorm(width),
        }
        activation: nn.Module = getattr(nn, ACTIVATIONS[self.activation])()
        norm = [norms[self.norm]()] if self.norm in norms else []
        return [layer, *norm, activation, *([nn.Dropout(self.dropout)] if self.dropout else [])]

    def initialised(self, network: nn.Sequential) -> nn.Sequential:
        """The network with its initial weights."""
        fill: dict[str, Callable[[Tensor], object]] = {
            "kaiming": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
            "xavier": nn.init.xavier_normal_,
            "orthogonal": nn.init.orthogonal_,
        }
        for layer in network.modules() if self.init in fill else ():
            if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None:
                fill[self.init](layer.weight)
                nn.init.zeros_(layer.bias)
        return network


def linear(in_shape: tuple[int, ...], out_features: int) -> nn.Sequential:
    """A linear model of the flattened inputs."""
    return mlp(in_shape, out_features, width=0, depth=0)


def mlp(
    in_shape: tuple[int, ...],
    out_features: int,
    *,
    width: int,
    depth: int,
    shape: str = "halving",
    **style: Any,
) -> nn.Sequential:
    """A fully connected network.

    Args:
        in_shape: shape of one example; an image is flattened.
        out_features: outputs.
        width: units of the first hidden layer.
        depth: hidden layers.
        shape: `halving` halves the width layer by layer, `constant` keeps it.
        style: of `Style`.

    Raises:
        ModelError: if halving leaves a layer without units.
    """
    layers: list[nn.Module] = [nn.Flatten()] if len(in_shape) > 1 else []
    widths = [int(torch.Size(in_shape).numel()), *mlp_widths(width, depth, shape)]
    return Style(**style).initialised(nn.Sequential(*layers, *_dense(widths, out_features, Style(**style))))


def cnn(
    in_shape: tuple[int, ...],
    out_features: int,
    *,
    width: int,
    depth: int,
    kernel: int = 5,
    padding: int = 0,
    **style: Any,
) -> nn.Sequential:
    """A convolutional network: depth x (convolution, activation, 2x2 max pooling), then 32-16 dense.

    Args:
        in_shape: (channels, height, width) of an image.
        out_features: outputs.
        width: channels of the first convolution; they double from one to the next.
        depth: convolutions.
        kernel: height and width of the filters, in pixels.
        padding: pixels of zeros around each convolution's input; a residual one is 3x3 and keeps the image's size.
        style: of `Style`.

    Raises:
        ModelError: if the image is too small for the depth.
    """
    sizes = cnn_sizes(in_shape, depth=depth, kernel=kernel, padding=padding)
    channels = [in_shape[0], *(width << layer for layer in range(depth))]
    make, second = partial(nn.Conv2d, kernel_size=kernel, padding=padding), partial(nn.Conv2d, kernel_size=3, padding=1)
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [*Style(**style).hidden(before, after, make, second), nn.MaxPool2d(2)]
    height, breadth = sizes[-1]
    head = _dense([channels[-1] * height * breadth, *CNN_HEAD], out_features, Style(**style))
    return Style(**style).initialised(nn.Sequential(*layers, nn.Flatten(), *head))


def quadratic(in_shape: tuple[int, ...], out_features: int) -> nn.Sequential:
    """DeepOBS's quadratic problem: outputs sqrt(n D / 2) R (x - theta), the mean of whose squares is its loss.

    Here n is the number of outputs, D the diagonal matrix of the Hessian's eigenvalues and R the rotation of
    `deepobs.hessian`. Only theta is trained; it starts at ones, whatever the seed.

    Raises:
        ModelError: if either is not the problem's.
    """
    if (in_shape, out_features) != ((deepobs.DIMENSIONS,), deepobs.DIMENSIONS):
        raise ModelError(f"the quadratic problem has data of its own, not {in_shape} inputs and {out_features} outputs")
    eigenvalues, rotation = deepobs.hessian()
    matrix = np.sqrt(out_features / 2 * eigenvalues)[:, None] * rotation
    return nn.Sequential(Shift(torch.ones(in_shape)), Fixed(torch.from_numpy(matrix)))


def build(
    family: str,
    in_shape: tuple[int, ...],
    out_features: int,
    *,
    width: int = 0,
    depth: int = 0,
    bundle: str = "",
    **arguments: object,
) -> nn.Module:
    """A network of a family, initialised from torch's global generator.

    Args:
        family: one of `FAMILIES`, or the import path of a user's model (`trainables.usercode.importing`).
        in_shape: shape of one example.
        out_features: outputs.
        width: see `mlp` and `cnn`; 0 for those of `catalogue.SIZELESS`. A user's model gets it if it is not 0.
        depth: as width.
        bundle: folder of the bundle that has a user's model.
        arguments: the family's own: `shape` of an MLP, `kernel` and `padding` of a CNN, and those of `Style`.

    Raises:
        ModelError: if there is no such network.
        UserCodeError: if a user's model cannot be built.
    """
    if is_import_path(family):
        size = {name: value for name, value in (("width", width), ("depth", depth)) if value}
        return _user_model(family, bundle, {"in_shape": in_shape, "out_features": out_features, **size, **arguments})
    if family == "linear":
        return linear(in_shape, out_features)
    if family == "quadratic":
        return quadratic(in_shape, out_features)
    if family in DEEPOBS:
        return deepobs_networks.network(family, in_shape, out_features)
    makers: dict[str, Callable[..., nn.Sequential]] = {"mlp": mlp, "cnn": cnn}
    if family not in makers:
        raise ModelError(f"no model family is called {family!r}; there are {', '.join(FAMILIES)}")
    return makers[family](in_shape, out_features, width=width, depth=depth, **arguments)


def _user_model(path: str, bundle: str, arguments: dict[str, Any]) -> nn.Module:
    """Build a user's model, and check that it can be trained."""
    network = library_model(path, arguments) if path.startswith(LIBRARIES) else own_model(path, arguments, bundle)
    if not isinstance(network, nn.Module):
        raise UserCodeError(f"{path}: returned {type(network).__name__}; expected a torch.nn.Module")
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
            raise UserCodeError(f"{path}: {name} has no size yet, as lazy layers'; give the layer its sizes")
        if tensor.is_complex():
            raise UserCodeError(f"{path}: {name} is complex; keep its real view, and torch.view_as_complex in forward")
    if not trained(network):
        message = "its module has no parameters that require gradients; give it at least one"
        raise UserCodeError(f"{path}: {message}; layers in a list count in nn.ModuleList only")
    # Wrapped, a chain is not taken for one of the shipped families.
    return nn.Sequential(network) if layered(network) and not _inputs_fit(network, arguments["in_shape"]) else network


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a network that are trained, by name, in the network's order."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def layered(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether a network is a chain of layers that lanes can stack, used as in the families, with all of it trained."""
    if type(module) is not nn.Sequential or not all(map(_known, module)):
        return False
    if hooked(module, forward=True):
        return False
    parameters = [id(parameter) for layer in module for parameter in layer.parameters()]
    return len(set(parameters)) == len(parameters) == len(trained(module))


def hooked(module: nn.Module, *, forward: bool = False) -> bool:
    """Whether a network has hooks that may change gradients; with `forward`, any hooks or a replaced `forward`.

    Args:
        module: the network.
        forward: whether the forward pass counts too.
    """
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in module.parameters()):
        return True
    kinds = ["_backward_hooks", "_backward_pre_hooks"]
    kinds += ["_forward_hooks", "_forward_pre_hooks"] if forward else []
    replaced = forward and any("forward" in vars(each) for each in module.modules())
    return replaced or any(getattr(each, kind) for each in module.modules() for kind in kinds)


def _inputs_fit(network: nn.Sequential, in_shape: tuple[int, ...]) -> bool:
    """Whether linear layers get vectors and convolutions images with channels; torch allows other shapes, too."""
    axes = len(in_shape)
    for layer in network:
        if isinstance(layer, nn.Flatten):
            axes = 1
        wanted = 1 if isinstance(layer, nn.Linear) else 3 if isinstance(layer, nn.Conv2d | nn.MaxPool2d) else axes
        if axes != wanted:
            return False
    return True


def _known(layer: nn.Module) -> bool:
    if type(layer) is nn.Linear:
        return layer.bias is not None
    if type(layer) is nn.Conv2d:
        plain = layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
        return plain and layer.bias is not None
    if type(layer) is nn.MaxPool2d:
        usual = layer.stride == layer.kernel_size and layer.padding == 0 and layer.dilation == 1
        return usual and not layer.ceil_mode and not layer.return_indices
    if type(layer) is nn.Flatten:
        return (layer.start_dim, layer.end_dim) == (1, -1)
    return type(layer) in (nn.ReLU, Shift, Fixed)


def _examples(module: nn.Module, in_shape: tuple[int, ...]) -> Tensor:
    """Two examples of zeros: batch statistics need more than one."""
    like = next(module.parameters())
    return torch.zeros(2, *in_shape, dtype=like.dtype, device=like.device)


@contextmanager
def _unfused() -> Iterator[None]:
    """Disable the fused operations of attention and LSTM, which torch's counter of operations does not count."""
    lstm, attention = torch._C._get_mkldnn_enabled(), torch.backends.mha.get_fastpath_enabled()
    torch._C._set_mkldnn_enabled(False)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(lstm)
        torch.backends.mha.set_fastpath_enabled(attention)


def activations(module: nn.Module, in_shape: tuple[int, ...]) -> int:
    """Numbers that a forward pass keeps for one example, its inputs included."""
    x = _examples(module, in_shape)
    if layered(module):
        return (x.numel() + sum(y.numel() for _, y in _layer_by_layer(module, x))) // len(x)
    own, kept = {p.untyped_storage().data_ptr() for p in module.parameters()}, [x.numel()]

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept.append(tensor.numel())
        return tensor

    with _evaluating(module), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        module(x)
    return sum(kept) // len(x)


def multiplications(module: nn.Module, in_shape: tuple[int, ...]) -> int:
    """Multiplications of the linear maps and convolutions in one network's forward pass of one example.

    For a user's network at least as many as it has parameters, since operations that are not counted are not free.
    """
    x, total = _examples(module, in_shape), 0
    if not layered(module):
        from torch.utils.flop_counter import FlopCounterMode

        with _evaluating(module), _unfused(), torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(x)
        parameters = sum(each.numel() for each in module.parameters())
        return max(1, parameters, int(counter.get_total_flops()) // 2 // len(x))
    for layer, y in _layer_by_layer(module, x):
        if isinstance(layer, nn.Linear):
            total += layer.weight.numel()
        elif isinstance(layer, Fixed):
            total += layer.matrix.numel()
        elif isinstance(layer, nn.Conv2d):
            total += layer.weight.numel() * y.shape[2] * y.shape[3]
    return total


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for as long as the context lasts; an error in it is the user code's."""
    before = module.training
    module.eval()
    try:
        yield
    except RuntimeError as error:
        raise UserCodeError(f"{type(module).__name__}: cannot be measured on two examples of zeros: {error}") from error
    finally:
        module.train(before)


@torch.no_grad()
def _layer_by_layer(module: nn.Sequential, x: Tensor) -> list[tuple[nn.Module, Tensor]]:
    found = []
    for layer in module:
        x = layer(x)
        found.append((layer, x))
    return found


def _dense(widths: Sequence[int], out_features: int, style: Style) -> list[nn.Module]:
    """Linear layers from the first width through hidden ones to the outputs."""
    hidden = itertools.chain.from_iterable(style.hidden(before, after) for before, after in pairwise(widths))
    return [*hidden, nn.Linear(widths[-1], out_features)]
