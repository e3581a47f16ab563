"""The optimizers' update rules over stacked parameters, each lane with its own learning rate.

The parameters of K networks lie side by side as one (K, P) tensor, so a rule is a few elementwise operations whatever
the network. Every rule here is linear in the learning rate and its state does not depend on it: it computes the unit
update u, and the step is p <- p - lr_k u. The results are those of the torch.optim class that each rule names, with the
settings given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

State = dict[str, Tensor]
Settings = Mapping[str, float]
UnitUpdate = Callable[[Tensor, Tensor, State, int, Settings], Tensor]


@dataclass(frozen=True)
class Rule:
    """An update rule.

    Attributes:
        name: the name in specs, tables and figures.
        unit_update: (parameters (K, P), gradients (K, P), state, number of the update from 1, settings) -> u (K, P);
            changes the state in place.
        torch_class: the torch.optim class that computes the same.
        rates: (lowest, highest) learning rate of the default grid, for losses of order one.
        buffers: names of the state's tensors, each (K, P), zero at first.
        settings: constants, under torch.optim's names.
    """

    name: str
    unit_update: UnitUpdate
    torch_class: type[torch.optim.Optimizer]
    rates: tuple[float, float]
    buffers: tuple[str, ...] = ()
    settings: Settings = field(default_factory=dict)

    def state(self, parameters: Tensor) -> State:
        """The state before the first update, for (K, P) parameters."""
        return {name: torch.zeros_like(parameters) for name in self.buffers}

    @torch.no_grad()
    def step(self, parameters: Tensor, gradients: Tensor, state: State, update: int, rates: Tensor) -> None:
        """Make one update in place.

        Args:
            parameters: (K, P).
            gradients: (K, P).
            state: what `state` gave, changed in place.
            update: number of this update, from 1.
            rates: (K, 1) learning rates.
        """
        unit = self.unit_update(parameters, gradients, state, update, self.settings)
        parameters.addcmul_(unit, rates, value=-1)


def _gradient(p: Tensor, g: Tensor, state: State, update: int, s: Settings) -> Tensor:
    """Steepest descent: u = g."""
    return g


def _momentum(p: Tensor, g: Tensor, state: State, update: int, s: Settings) -> Tensor:
    """Heavy ball (Polyak, 1964) as torch has it: b <- momentum b + g, u = b. From b = 0 the first b is g."""
    return state["momentum_buffer"].mul_(s["momentum"]).add_(g)


def _nesterov(p: Tensor, g: Tensor, state: State, update: int, s: Settings) -> Tensor:
    """Nesterov momentum (Sutskever et al., 2013): u = g + momentum b."""
    return g.add(_momentum(p, g, state, update, s), alpha=s["momentum"])


def _adagrad(p: Tensor, g: Tensor, state: State, update: int, s: Settings) -> Tensor:
    """Adagrad (Duchi et al., 2011): u = g / (sqrt(sum g^2) + eps)."""
    total = state["sum"].addcmul_(g, g)
    return g / total.sqrt().add_(s["eps"])


def _rmsprop(p: Tensor, g: Tensor, state: State, update: int, s: Settings) -> Tensor:
    """RMSprop (Tieleman and Hinton, 2012), eps after the root."""
    square = state["square_avg"].mul_(s["alpha"]).addcmul_(g, g, value=1 - s["alpha"])
    return g / square.sqrt().add_(s["eps"])


def _adam(p: Tensor, g: Tensor, state: State, update: int, s: Settings) -> Tensor:
    """Adam (Kingma and Ba, 2015): bias-corrected first moment over root of second."""
    first = state["exp_avg"].lerp_(g, 1 - s["beta1"])
    second = state["exp_avg_sq"].mul_(s["beta2"]).addcmul_(g, g, value=1 - s["beta2"])
    root = second.sqrt().div_(math.sqrt(1 - s["beta2"] ** update)).add_(s["eps"])
    return first.div(1 - s["beta1"] ** update).div_(root)


def _adamw(p: Tensor, g: Tensor, state: State, update: int, s: Settings) -> Tensor:
    """AdamW (Loshchilov and Hutter, 2019): Adam plus decay of the parameters themselves, both times the rate."""
    return _adam(p, g, state, update, s).add_(p, alpha=s["weight_decay"])


_ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
_MOMENTS = ("exp_avg", "exp_avg_sq")

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("gradient-descent", _gradient, torch.optim.SGD, (1e-4, 1.0)),
        Rule("sgd", _gradient, torch.optim.SGD, (1e-4, 1.0)),
        Rule("momentum", _momentum, torch.optim.SGD, (1e-5, 0.1), ("momentum_buffer",), {"momentum": 0.9}),
        Rule("nesterov", _nesterov, torch.optim.SGD, (1e-5, 0.1), ("momentum_buffer",), {"momentum": 0.9}),
        Rule("adagrad", _adagrad, torch.optim.Adagrad, (1e-3, 1.0), ("sum",), {"eps": 1e-10}),
        Rule("rmsprop", _rmsprop, torch.optim.RMSprop, (1e-5, 0.1), ("square_avg",), {"alpha": 0.99, "eps": 1e-8}),
        Rule("adam", _adam, torch.optim.Adam, (1e-5, 0.1), _MOMENTS, _ADAM),
        Rule("adamw", _adamw, torch.optim.AdamW, (1e-5, 0.1), _MOMENTS, {**_ADAM, "weight_decay": 0.01}),
    )
}
