"""Lanes of any `torch.nn.Module`: all of them at once by torch.func, or, where that cannot be, one after another."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainables.foreign import ForeignError, told
from trainables.models import trained
from trainables.stack import out_of_memory, stream


@dataclass(frozen=True)
class Manner:
    """How the lanes of a network can run.

    Attributes:
        together: whether all at once.
        whole: whether what an example gives depends on its batch, or on chance, or changes a buffer: then batches are
            not cut into blocks.
        draws: whether it draws random numbers while it trains.
        why: why they cannot run at once, in words; empty if they can.
    """

    together: bool
    whole: bool
    draws: bool = False
    why: str = ""


@dataclass(frozen=True)
class Rows:
    """Some lanes of a stack: what the forward pass of a user's network takes besides parameters and inputs.

    Attributes:
        extras: `Stack.extras` of the lanes, changed in place while training.
        seeds: of the lanes.
        update: updates made so far; it and the seed decide on all random numbers.
    """

    extras: dict[str, Tensor]
    seeds: Sequence[int]
    update: int


class Copies:
    """The forward pass of K copies of a network.

    Args:
        network: one of them, on the lanes' device and in their type; it is used as a template.
        manner: of `manner_of`.
    """

    def __init__(self, network: nn.Module, manner: Manner) -> None:
        self.network, self.manner, self.names = network, manner, list(trained(network))

    def __call__(self, parameters: Sequence[Tensor], x: Tensor, rows: Rows, *, training: bool) -> Tensor:
        """(parameters, each (K, *shape), inputs (K or 1, B, *in_shape)) -> outputs (K, B, out_features)."""
        self.network.train(training)
        named = dict(zip(self.names, parameters, strict=True))
        with _plainly():
            if self.manner.together:
                shared = len(x) == 1
                each = vmap(self._one, in_dims=(0, 0, None if shared else 0))
                outputs: Tensor = each(named, rows.extras, x[0] if shared else x)
                return outputs
            found = []
            for lane, seed in enumerate(rows.seeds):
                own = {name: tensor[lane] for name, tensor in named.items()}
                extras = {name: extra[lane] for name, extra in rows.extras.items()}
                with drawing(seed, rows.update, x.device, when=training and self.manner.draws):
                    found.append(self._one(own, extras, x[lane if len(x) > 1 else 0]))
            return torch.stack(found)

    def _one(self, parameters: dict[str, Tensor], extras: dict[str, Tensor], x: Tensor) -> Tensor:
        outputs: Tensor = functional_call(self.network, (parameters, extras), (x,))
        return outputs


@contextmanager
def drawing(seed: int, update: int, device: torch.device, *, when: bool = True) -> Iterator[None]:
    """Random numbers that depend on a lane's seed and the update alone; torch's generators are left as they were."""
    if not when:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stream(seed, 3, update))
        yield


@contextmanager
def _plainly() -> Iterator[None]:
    """Attention by operations that can be batched over lanes, whether training or not."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def manner_of(network: nn.Module, sample: Tensor, name: str = "the model") -> Manner:
    """Try how lanes of a network can run, on a few examples.

    Args:
        network: one; it stays as it is.
        sample: four examples or so, (n, *in_shape), on its device and in its type.
        name: what to call it in messages.

    Raises:
        ForeignError: if the network does not even run alone.
    """
    names = trained(network)
    extras = {key: value.detach() for key, value in network.named_buffers()}
    half = max(1, len(sample) // 2)
    x = torch.stack([sample[:half], sample[len(sample) - half :]])

    def fresh(lanes: int) -> tuple[list[Tensor], Rows]:
        leaves = [p.detach().repeat(lanes, *[1] * p.ndim).requires_grad_() for p in names.values()]
        copies = {key: value.repeat(lanes, *[1] * value.ndim) for key, value in extras.items()}
        return leaves, Rows(copies, [0] * lanes, 0)

    def run(manner: Manner, inputs: Tensor) -> tuple[Tensor, list[Tensor], Rows]:
        leaves, rows = fresh(len(inputs))
        outputs = Copies(network, manner)(leaves, inputs, rows, training=True)
        gradients = torch.autograd.grad(outputs.square().sum(), leaves, materialize_grads=True)
        return outputs.detach(), list(gradients), rows

    before = network.training
    try:
        try:
            outputs, gradients, rows = run(Manner(False, True, draws=True), x)
        except Exception as error:
            if out_of_memory(error):
                raise
            raise ForeignError(
                f"{name}: cannot be run and differentiated: {told(error, name.partition(':')[0])}"
            ) from error
        changes = any(not torch.equal(rows.extras[key], fresh(2)[1].extras[key]) for key in extras)
        try:
            together, others, after = run(Manner(True, True), x)
        except Exception as error:  # noqa: BLE001  whatever torch.func cannot do
            draws = "random" in str(error)
            why = (
                "it draws random numbers, as dropout does" if draws else f"torch.func cannot batch it: {_short(error)}"
            )
            return Manner(False, whole=True, draws=draws or _draws(run, x), why=why)
        pairs = [(outputs, together), *zip(gradients, others, strict=True)]
        pairs += [(rows.extras[key], after.extras[key]) for key in extras]
        if not all(_close(a, b) for a, b in pairs):
            return Manner(
                False, whole=True, draws=_draws(run, x), why="its copies at once give other numbers than one by one"
            )
        return Manner(True, whole=changes or _coupled(run, x, outputs))
    finally:
        network.train(before)


def _draws(run: Callable[..., tuple[Tensor, list[Tensor], Rows]], x: Tensor) -> bool:
    """Whether a network gives other numbers for other seeds of torch's."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = run(Manner(False, True), x)[0]
        torch.manual_seed(2)
        return not torch.equal(first, run(Manner(False, True), x)[0])


def _coupled(run: Callable[..., tuple[Tensor, list[Tensor], Rows]], x: Tensor, outputs: Tensor) -> bool:
    """Whether an example's outputs depend on the others of its batch."""
    try:
        return not _close(run(Manner(False, True), x[:1, :1])[0][0, 0], outputs[0, 0])
    except Exception:  # noqa: BLE001  normalising over a batch of one is an error
        return True


def _close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    limit = 1e-9 if a.dtype == torch.float64 else 1e-3
    return bool(torch.allclose(a, b, rtol=limit, atol=limit * max(1.0, float(b.abs().max())), equal_nan=True))


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
