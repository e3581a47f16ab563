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
        scalars: names and first values of state that is one number a lane, (K, 1), in torch's default type, as
            torch.optim keeps them whatever the parameters' type.
    """

    name: str
    unit_update: UnitUpdate
    torch_class: type[torch.optim.Optimizer]
    rates: tuple[float, float]
    buffers: tuple[str, ...] = ()
    settings: Settings = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)

    def state(self, parameters: Tensor) -> State:
        """The state before the first update, for (K, P) parameters."""
        lanes, device = len(parameters), parameters.device
        full = {name: torch.zeros_like(parameters) for name in self.buffers}
        return full | {name: torch.full((lanes, 1), first, device=device) for name, first in self.scalars.items()}

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


def _moments(g: Tensor, state: State, s: Settings) -> tuple[Tensor, Tensor]:
    """The running means of gradients and of their squares, brought up to date in place."""
    first = state["exp_avg"].lerp_(g, 1 - s["beta1"])
    return first, state["exp_avg_sq"].mul_(s["beta2"]).addcmul_(g, g, value=1 - s["beta2"])


def _adam(p: Tensor, g: Tensor, state: State, update: int, s: Settings) -> Tensor:
    """Adam (Kingma and Ba, 2015): bias-corrected first moment over root of second."""
    first, second = _moments(g, state, s)
    root = second.sqrt().div_(math.sqrt(1 - s["beta2"] ** update)).add_(s["eps"])
    return first.div(1 - s["beta1"] ** update).div_(root)


def _adamw(p: Tensor, g: Tensor, state: State, update: int, s: Settings) -> Tensor:
    """AdamW (Loshchilov and Hutter, 2019): Adam plus decay of the parameters themselves, both times the rate."""
    return _adam(p, g, state, update, s).add_(p, alpha=s["weight_decay"])


def _adadelta(p: Tensor, g: Tensor, state: State, update: int, s: Settings) -> Tensor:
    """Adadelta (Zeiler, 2012): the gradient times the ratio of running root mean squares of steps and gradients."""
    square = state["square_avg"].mul_(s["rho"]).addcmul_(g, g, value=1 - s["rho"])
    delta = state["acc_delta"].add(s["eps"]).sqrt_().div_(square.add(s["eps"]).sqrt_()).mul_(g)
    state["acc_delta"].mul_(s["rho"]).addcmul_(delta, delta, value=1 - s["rho"])
    return delta


def _amsgrad(p: Tensor, g: Tensor, state: State, update: int, s: Settings) -> Tensor:
    """AMSGrad (Reddi et al., 2018): Adam over the largest second moment so far."""
    first, second = _moments(g, state, s)
    largest = state["max_exp_avg_sq"]
    torch.maximum(largest, second, out=largest)
    root = largest.sqrt().div_(math.sqrt(1 - s["beta2"] ** update)).add_(s["eps"])
    return first.div(1 - s["beta1"] ** update).div_(root)


def _adamax(p: Tensor, g: Tensor, state: State, update: int, s: Settings) -> Tensor:
    """Adamax (Kingma and Ba, 2015): Adam with the infinity norm."""
    first = state["exp_avg"].lerp_(g, 1 - s["beta1"])
    norm = state["exp_inf"].mul_(s["beta2"])
    torch.maximum(norm, g.abs().add_(s["eps"]), out=norm)
    return first.div(1 - s["beta1"] ** update).div_(norm)


def _nadam(p: Tensor, g: Tensor, state: State, update: int, s: Settings) -> Tensor:
    """NAdam (Dozat, 2016): Adam with Nesterov momentum and its warming schedule."""
    now, following = (s["beta1"] * (1 - 0.5 * 0.96 ** (n * s["momentum_decay"])) for n in (update, update + 1))
    first, second = _moments(g, state, s)
    product: Tensor = state["mu_product"].mul_(now).to(g.dtype)
    root = second.div(1 - s["beta2"] ** update).sqrt_().add_(s["eps"])
    ahead: Tensor = first * (following / (1 - product * following))
    return ahead.addcmul_(g, (1 - now) / (1 - product)).div_(root)


def _radam(p: Tensor, g: Tensor, state: State, update: int, s: Settings) -> Tensor:
    """RAdam (Liu et al., 2020): Adam rectified by the variance of its second moment; plain momentum at first."""
    first, second = _moments(g, state, s)
    unit = first.div(1 - s["beta1"] ** update)
    decay = s["beta2"] ** update
    longest = 2 / (1 - s["beta2"]) - 1
    length = longest - 2 * update * decay / (1 - decay)
    if length <= 5:
        return unit
    rectified = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return unit.mul_(math.sqrt(rectified * (1 - decay))).div_(second.sqrt().add_(s["eps"]))


_ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
_NADAM = {**_ADAM, "momentum_decay": 4e-3}
_ADADELTA = {"rho": 0.9, "eps": 1e-6}
_MOMENTS = ("exp_avg", "exp_avg_sq")

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        # Plain steepest descent has two names: the textbook one and that of torch.optim.
        Rule("gradient-descent", _gradient, torch.optim.SGD, (1e-4, 1.0)),
        Rule("sgd", _gradient, torch.optim.SGD, (1e-4, 1.0)),
        Rule("momentum", _momentum, torch.optim.SGD, (1e-5, 0.1), ("momentum_buffer",), {"momentum": 0.9}),
        Rule("nesterov", _nesterov, torch.optim.SGD, (1e-5, 0.1), ("momentum_buffer",), {"momentum": 0.9}),
        Rule("adagrad", _adagrad, torch.optim.Adagrad, (1e-3, 1.0), ("sum",), {"eps": 1e-10}),
        Rule("rmsprop", _rmsprop, torch.optim.RMSprop, (1e-5, 0.1), ("square_avg",), {"alpha": 0.99, "eps": 1e-8}),
        Rule("adadelta", _adadelta, torch.optim.Adadelta, (1e-2, 10.0), ("square_avg", "acc_delta"), _ADADELTA),
        Rule("adam", _adam, torch.optim.Adam, (1e-5, 0.1), _MOMENTS, _ADAM),
        Rule("adamw", _adamw, torch.optim.AdamW, (1e-5, 0.1), _MOMENTS, {**_ADAM, "weight_decay": 0.01}),
        Rule("amsgrad", _amsgrad, torch.optim.Adam, (1e-5, 0.1), (*_MOMENTS, "max_exp_avg_sq"), _ADAM),
        Rule("adamax", _adamax, torch.optim.Adamax, (1e-5, 0.1), ("exp_avg", "exp_inf"), _ADAM),
        Rule("nadam", _nadam, torch.optim.NAdam, (1e-5, 0.1), _MOMENTS, _NADAM, {"mu_product": 1.0}),
        Rule("radam", _radam, torch.optim.RAdam, (1e-5, 0.1), _MOMENTS, _ADAM),
    )
}
