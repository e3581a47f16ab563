"""The optimizers' update rules over stacked parameters, each lane with its own learning rate.

The parameters of K networks are the rows of one (K, P) tensor, so a rule is a few elementwise operations for any
network. Most rules are linear in the learning rate, and their state does not depend on it: they compute the unit update
u, and the step is p <- p - lr_k u. Others make the whole step. `trainables.formulas` has the formulas of all. The
results are those of the torch.optim class that the rule names, with the same settings, or of the published package.
Before the rule gradients are clipped, and the weight decay of a rule that has none of its own is added to them.

Coefficients that depend on the number of the update (bias corrections, warming of momentum) come from a table that is
computed before a run of updates, so that a CUDA graph or the native kernel reads them from memory. Settings may differ
between lanes, as tensors that broadcast against the parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables.formulas import STEPS, UPDATES, Columns, Numbers, State, Step, UnitUpdate, gradient, no_columns
from trainables.usercode.importing import EXPECTED, UserCodeError, imported, is_import_path
from trainables.workloads import catalogue
from trainables.workloads.catalogue import (
    OPTIMIZERS,
    SOLO_RATES,
    OptimizerFacts,
    class_refuses,
    class_settings,
    rule_refuses,
)

# What torch adds to a norm before it divides by it.
NORM_EPS = 1e-6
# The moving average of the parameters: the buffer, the setting that is its decay, and the weight of an update in it.
EMA = "ema"


@dataclass(frozen=True)
class Rule:
    """An update rule.

    Attributes:
        name: the name in specs, tables and figures.
        unit_update: (parameters, gradients, state, coefficients, settings) -> u, each of the parameters' shape or
            broadcasting against it; changes the state in place.
        torch_class: the torch.optim class that computes the same, if there is one.
        rates: (lowest, highest) learning rate of the default grid, for losses of order one.
        buffers: names of the state's tensors, each like the parameters, zero at first.
        settings: constants, under torch.optim's names.
        columns: the coefficients that depend on the number of the update.
        solo: whether `torch_class` itself runs, lane by lane, because there is no rule over lanes.
        scalars: names of the state's numbers, one for each lane, (K, 1), zero at first.
        make_step: shapes of a network's parameters -> the whole step, for a rule that is not linear in the rate or
            depends on the shapes; `unit_update` is then not used.
        average: (parameters, state, settings) -> the parameters to evaluate, where they are not those that train.
        whole: the step for one network's shapes, from `bound`.
    """

    name: str
    unit_update: UnitUpdate
    torch_class: type[torch.optim.Optimizer] | None
    rates: tuple[float, float]
    buffers: tuple[str, ...] = ()
    settings: Mapping[str, float] = field(default_factory=dict)
    columns: Columns = no_columns
    solo: bool = False
    scalars: tuple[str, ...] = ()
    make_step: Callable[[Sequence[torch.Size]], Step] | None = None
    average: Callable[[Tensor, State, Numbers], Tensor] | None = None
    whole: Step | None = None

    def bound(self, shapes: Sequence[torch.Size]) -> Rule:
        """The rule for a network whose parameters have these shapes."""
        return replace(self, whole=self.make_step(shapes)) if self.make_step else self

    def with_ema(self) -> Rule:
        """The rule that also keeps an exponential moving average of the parameters, by which lanes are evaluated.

        It is that of `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn`: after the first update it is
        the parameters, and later it keeps the share that the setting `ema` says.

        Raises:
            ValueError: if the rule averages parameters itself.
        """
        if self.average:
            raise ValueError(f"{self.name} averages its parameters itself, so it takes no ema")

        def columns(n: np.ndarray, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
            return {**self.columns(n, settings), EMA: np.where(n > 1, 1 - np.asarray(settings[EMA]), 1.0)}

        return replace(
            self,
            buffers=(*self.buffers, EMA),
            settings={**self.settings, EMA: 0.0},
            columns=columns,
            average=lambda parameters, state, settings: state[EMA],
        )

    def state(self, parameters: Tensor) -> State:
        """The state before the first update, for parameters (K, P)."""
        state = {name: parameters.clone() if name == EMA else torch.zeros_like(parameters) for name in self.buffers}
        return state | {name: parameters.new_zeros(len(parameters), 1) for name in self.scalars}

    @property
    def facts(self) -> OptimizerFacts:
        """Properties that a spec is checked by."""
        return OptimizerFacts(self.rates, class_settings(self.torch_class) if self.solo else self.settings, self.solo)

    def refused(self, setting: str, value: float) -> str | None:
        """Why a setting cannot have a value; None if it can."""
        return class_refuses(self.torch_class, setting, value) if self.solo else rule_refuses(setting, value)

    def coefficients(self, first: int, last: int, settings: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
        """The coefficients of updates `first` to `last`, from 1, both included.

        Args:
            first: number of the first update.
            last: number of the last.
            settings: floats, or (L,) arrays of lanes' values; the rule's own if not given.

        Returns:
            name -> (updates, 1), or (updates, L) where a setting that it depends on differs between lanes; float64.
        """
        table = self.columns(np.arange(1, last + 1, dtype=np.float64)[:, None], settings or self.settings)
        return {name: column[first - 1 :] for name, column in table.items()}

    def optimizers(
        self, parameters: list[nn.Parameter], rate: float, settings: Mapping[str, Any]
    ) -> list[torch.optim.Optimizer]:
        """Optimizers of the torch class, for the parameters of one network."""
        make: Any = self.torch_class
        return [make(parameters, lr=rate, **settings)]

    def reference(
        self, parameters: list[nn.Parameter], rate: float, settings: Mapping[str, float]
    ) -> list[torch.optim.Optimizer]:
        """The torch optimizers that compute the same with the same settings; the rule itself if there are none."""
        if self.torch_class is None:
            return [_Alone(parameters, self, rate, settings)]
        return self.optimizers(parameters, rate, self.options(settings))

    def options(self, settings: Mapping[str, float]) -> dict[str, Any]:
        """The arguments of `torch_class`, besides lr, that stand for the settings."""
        if self.solo:
            return dict(settings)
        assert self.torch_class
        values, known = {**self.settings, **settings}, inspect.signature(self.torch_class).parameters
        options: dict[str, Any] = {name: value for name, value in values.items() if name in known}
        if values.get("weight_decay") and "weight_decay" not in known:
            raise ValueError(f"{self.name}: its torch_class has no argument weight_decay; leave it out")
        if "betas" in known and {"beta1", "beta2"} <= set(values):
            options["betas"] = values["beta1"], values["beta2"]
        if self.name in ("nesterov", "amsgrad"):
            options[self.name] = True
        return options

    @torch.no_grad()
    def step(
        self,
        parameters: Tensor,
        gradients: Tensor,
        state: State,
        rates: Tensor,
        coefficients: Numbers,
        settings: Numbers,
    ) -> None:
        """Make one update in place.

        Args:
            parameters: of any shape.
            gradients: of the same.
            state: what `state` gave, changed in place.
            rates: learning rates, broadcasting against the parameters.
            coefficients: those of this update.
            settings: numbers, or tensors that broadcast against the parameters.
        """
        if self.whole:
            self.whole(parameters, gradients, state, rates, coefficients, settings)
        else:
            parameters.addcmul_(self.unit_update(parameters, gradients, state, coefficients, settings), rates, value=-1)
        if EMA in self.buffers:
            state[EMA].lerp_(parameters, coefficients[EMA])


@dataclass(frozen=True)
class Adjustment:
    """What is done to the gradients before the rule: values are clipped, then norms, then parameters decay.

    Attributes:
        value: largest absolute value of a component, (k, 1), infinite for no limit; None if no row has one.
        norm: largest norm of a row, as `torch.nn.utils.clip_grad_norm_` has it, (k, 1), infinite for no limit; None if
            no row has one.
        decay: coupled weight decay, (k, 1); None if no row decays.
    """

    value: Tensor | None
    norm: Tensor | None
    decay: Tensor | None

    @classmethod
    def of(cls, value: Tensor, norm: Tensor, decay: Tensor) -> Adjustment:
        """From numbers of all rows, (k, 1) each."""
        value_or_none, norm_or_none = (each if bool(each.isfinite().any()) else None for each in (value, norm))
        return cls(value_or_none, norm_or_none, decay if bool(decay.any()) else None)

    @torch.no_grad()
    def __call__(self, parameters: Tensor, gradients: Tensor) -> None:
        """Change gradients, (k, P), in place."""
        if self.value is not None:
            gradients.clamp_(-self.value, self.value)
        if self.norm is not None:
            norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
            share = (self.norm / (norms + NORM_EPS)).clamp(max=1)
            # Without a limit even an infinite norm changes nothing.
            gradients.mul_(torch.where(self.norm.isinf(), 1.0, share))
        if self.decay is not None:
            gradients.addcmul_(parameters, self.decay)


class _Alone(torch.optim.Optimizer):
    """A rule for one network, as torch has optimizers.

    Args:
        parameters: of the network.
        rule: it.
        rate: the learning rate.
        settings: of the rule, where they are not its own.
    """

    def __init__(self, parameters: list[nn.Parameter], rule: Rule, rate: float, settings: Mapping[str, float]) -> None:
        super().__init__(parameters, {"lr": rate})
        self.rule, self.settings = rule.bound([p.shape for p in parameters]), {**rule.settings, **settings}

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update."""
        parameters, rate = self.param_groups[0]["params"], self.param_groups[0]["lr"]
        row = torch.cat([p.flatten() for p in parameters])[None]
        # All parameters' state is the first one's, as torch keeps none of a whole network.
        kept = self.state[parameters[0]]
        if not kept:
            kept.update(update=0, **self.rule.state(row))
        kept["update"] += 1
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])[None]
        table = self.rule.coefficients(kept["update"], kept["update"], self.settings)
        coefficients = {name: column.item() for name, column in table.items()}
        memory = {name: kept[name] for name in (*self.rule.buffers, *self.rule.scalars)}
        if "weight_decay" not in self.rule.settings:
            flat.add_(row, alpha=self.settings.get("weight_decay", 0.0))
        self.rule.step(row, flat, memory, row.new_full((1, 1), rate), coefficients, self.settings)
        self._write(row)

    @torch.no_grad()
    def average(self) -> None:
        """Put the parameters to evaluate in place of those that train, where the rule has an average."""
        parameters = self.param_groups[0]["params"]
        row, kept = torch.cat([p.flatten() for p in parameters])[None], self.state[parameters[0]]
        if self.rule.average and kept:
            self._write(self.rule.average(row, kept, self.settings))

    def _write(self, row: Tensor) -> None:
        parameters = self.param_groups[0]["params"]
        for parameter, values in zip(parameters, row[0].split([p.numel() for p in parameters]), strict=True):
            parameter.copy_(values.view_as(parameter))


def _shipped(name: str) -> Rule:
    facts = OPTIMIZERS[name]
    if name in UPDATES:
        update, torch_class, buffers, columns = UPDATES[name]
        return Rule(name, update, torch_class, facts.rates, buffers, facts.settings, columns)
    make_step, torch_class, buffers, scalars, columns, average = STEPS[name]
    rule = Rule(name, gradient, torch_class, facts.rates, buffers, facts.settings, columns, scalars=scalars)
    return replace(rule, make_step=make_step, average=average)


RULES: dict[str, Rule] = {name: _shipped(name) for name in catalogue.RULES}


def named(name: str, code: str = "") -> Rule:
    """The rule of this name, a class of `torch.optim`, which runs lane by lane, or a user's optimizer of either kind.

    Args:
        name: of a rule or class, or an import path.
        code: folder of the bundle that has a user's optimizer.

    Raises:
        KeyError: if there is no such optimizer.
        UserCodeError: if a user's optimizer cannot be used.
    """
    if name in RULES:
        return RULES[name]
    if is_import_path(name):
        found = imported(name, code)
        if isinstance(found, Rule):
            return replace(found, name=name)
        if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
            if "lr" not in inspect.signature(found).parameters:
                raise UserCodeError(f"{name}: has no argument lr, the learning rate; add it, as in torch.optim")
            return Rule(name, gradient, found, SOLO_RATES, solo=True)
        kind = found.__name__ if isinstance(found, type) else type(found).__name__
        raise UserCodeError(f"{name}: is {kind}; expected {EXPECTED['optimizer']}")
    if name not in OPTIMIZERS:
        raise KeyError(f"no optimizer is called {name!r}; there are {', '.join(OPTIMIZERS)}")
    return Rule(name, gradient, getattr(torch.optim, name), OPTIMIZERS[name].rates, solo=True)
