"""Tries a user's code in a process of its own, so that nothing it does can harm or stop the study.

    python -m trainables.usercode.probe PIPE < REQUEST

It reads a `Request` as JSON, and writes messages to the pipe of that number: one before each step, so that the parent
process knows what was running when this one died or exceeded its time, and an `Answer` at the end.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch

from trainables.config import Reading
from trainables.errors import DataError, ModelError
from trainables.lanes.reference import relative, step
from trainables.lanes.seeds import initialise
from trainables.rules import Rule, named
from trainables.usercode.importing import (
    UserCodeError,
    describe_error,
    files_elsewhere,
    hash_of,
    imported,
    is_import_path,
    is_table,
    modules_from,
)
from trainables.usercode.request import Answer, Request
from trainables.usercode.vmap_support import support_of
from trainables.workloads import data, findings, models
from trainables.workloads.adapting import LIBRARIES
from trainables.workloads.catalogue import RULES, Facts
from trainables.workloads.criterion import called_on

Result = TypeVar("Result")

# Time limits of the steps.
IMPORT_SECONDS, DATA_SECONDS, RUN_SECONDS = 60, 1800, 120
EXAMPLES = 16
_PARTS = (slice(0, 1), slice(-1, None), slice(0, EXAMPLES // 2), slice(EXAMPLES // 2, None))
# Updates that an optimizer is tried on: enough for those that look ahead or average every few updates.
TRIED_UPDATES = 25
TOLERANCE = 1e-9  # relative, float64


@dataclass(frozen=True)
class Sample:
    """A few training examples: facts of their data set, inputs (n, *in_shape), targets (n, ...)."""

    facts: Facts
    inputs: torch.Tensor
    targets: torch.Tensor


class Probe:
    """Answers one request."""

    def __init__(self, request: Request, tell: Callable[[dict[str, Any]], None]) -> None:
        self.request, self.tell, self.answer = request, tell, Answer()

    def run(self) -> Answer:
        """Import everything, then try everything whose requirements did not fail."""
        request, code = self.request, self.request.code
        paths = [("workload.data", request.data), ("workload.model", request.model), ("workload.loss", request.loss)]
        paths += [("workload.metric", request.score), *(("search.optimizer", path) for path in request.optimizers)]
        for key, path in paths:
            if is_import_path(path) and not path.startswith(LIBRARIES):
                self._try(key, path, f"importing {path}", IMPORT_SECONDS, partial(imported, path, code))
        if not self.answer.mistakes:
            sample = self._sample()
            for path, settings in request.optimizers.items():
                work, before = partial(try_optimizer, path, code), len(self.answer.mistakes)
                self._try("search.optimizer", path, f"trying {path}", RUN_SECONDS, work)
                if len(self.answer.mistakes) == before:
                    self._settings(path, settings)
            if sample:
                self._functions(sample)
                self._networks(sample)
        self.answer.lacking, self.answer.elsewhere = sorted(modules_from(request.folders)), files_elsewhere()
        if is_table(request.data) and (table := Path(request.data)).is_absolute() and table.is_file():
            self.answer.elsewhere[request.data] = hash_of(table)
        return self.answer

    def _try(self, key: str, path: str, doing: str, seconds: float, work: Callable[[], Result]) -> Result | None:
        """The result of a step; None if it failed, which becomes a mistake of the key."""
        self.tell({"key": key, "path": path, "doing": doing, "seconds": seconds})
        try:
            return work()
        except (UserCodeError, ModelError, DataError) as error:
            self.answer.mistakes.append(f"{key}: {error}")
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
                raise
            limit = self.request.memory_bytes / 2**30
            self.answer.mistakes.append(f"{key}: {path}: {doing} took more memory than the {limit:.1f} GiB there are")
        return None

    def _settings(self, path: str, settings: dict[str, list[Any]]) -> None:
        """Report an optimizer's properties, and the values of settings that it does not take."""
        rule = named(path, self.request.code)
        self.answer.optimizers[path] = dataclasses.asdict(rule.facts)
        if (name := path.removeprefix("torch.optim:").lower()) in RULES:
            self._note(f"{path} runs lane by lane, which takes longer; {name} computes the same in lanes")
        for name, values in settings.items():
            refusals = (rule.refused(name, float(value)) for value in values if name in rule.facts.settings)
            if refusal := next(filter(None, refusals), None):
                self.answer.mistakes.append(f"search.settings.{path}.{name} = {values}: {refusal}")

    def _note(self, text: str) -> None:
        if text not in self.answer.notes:
            self.answer.notes.append(text)

    def _sample(self) -> Sample | None:
        """Examples of a user's data set, or noise of the shape of a shipped one; None if the data cannot be used."""
        request, dtype = self.request, getattr(torch, self.request.dtype)
        if request.facts:
            facts = Facts.of(request.facts)
            inputs = torch.randn(EXAMPLES, *facts.in_shape, generator=torch.Generator().manual_seed(0)).to(dtype)
            targets = inputs.new_zeros(EXAMPLES, facts.out_features)
            return Sample(facts, inputs, targets if facts.task == "regression" else torch.zeros(EXAMPLES).long())
        name, code = request.data, request.code
        source = data.Source(name, code, Reading.from_fields(request.reading), request.images)
        own = self._try(
            "workload.data", name, f"loading {name}", DATA_SECONDS, partial(source.own, Path(request.data_folder))
        )
        if own is None:
            return None
        if own.doubt:
            self.answer.mistakes.append(f"workload.data: {name}: {own.doubt}")
            return None
        loaded = data.prepared(name, own, standardize=request.standardize, dtype=dtype)
        sizes = len(loaded.train), len(loaded.validation), len(loaded.test)
        warned, scores = tuple(findings.warnings(own)), findings.baselines(own, standardize=request.standardize)
        columns = own.columns if loaded.in_shape == (len(own.columns),) else ()
        facts = Facts(
            own.task, loaded.in_shape, own.outputs, *sizes, _about(name, request), own.classes, warned, scores, columns
        )
        self.answer.facts = dataclasses.asdict(facts)
        for note in own.notes:
            self._note(note)
        if request.redraw and not data.takes_seed(name, code):
            self.answer.mistakes.append(
                f"workload.redraw = true: {name} takes no seed, so it cannot draw new data; add the argument seed"
            )
        if facts.task == "classification" and not own.classes:
            self._note(
                f"{name} has whole numbers as targets, so they are {facts.out_features} classes; those of a "
                "regression are floats"
            )
        few = loaded.train.head(EXAMPLES)
        return Sample(facts, few.inputs, few.targets)

    def _functions(self, sample: Sample) -> None:
        """Try the user's loss and score."""
        for key, what, path in (("loss", "loss", self.request.loss), ("metric", "score", self.request.score)):
            if path:
                work = partial(_try_function, path, what, sample, self.request.code)
                self._try(f"workload.{key}", path, f"trying {path}", RUN_SECONDS, work)

    def _networks(self, sample: Sample) -> None:
        """Try networks until one has a mistake: larger ones would repeat it."""
        for arguments in self.request.networks:
            if self.answer.mistakes:
                return
            size = ", ".join(f"{name} {value}" for name, value in arguments.items()) or "its size"
            doing, work = f"building and running {self.request.model} of {size}", partial(self._network, sample, size)
            self._try("workload.model", self.request.model, doing, RUN_SECONDS, partial(work, arguments))

    def _network(self, sample: Sample, size: str, arguments: dict[str, Any]) -> None:
        path, facts, inputs = self.request.model, sample.facts, sample.inputs
        build = partial(models.build, path, facts.in_shape, facts.out_features, bundle=self.request.code, **arguments)
        try:
            support = support_of(build, inputs, path)
        except UserCodeError as error:
            if self.request.standardize and "index out of range" in str(error):
                raise UserCodeError(
                    f"{error}; inputs are standardised, also token ids; for these set standardize = false"
                ) from error
            raise
        network = initialise(build, 0).to(inputs.dtype)
        outputs = _check_outputs(network, sample, path, size)
        shares = bool((outputs >= 0).all()) and torch.allclose(outputs.sum(1), torch.ones(()).to(outputs))
        if shares and facts.task == "classification" and not self.request.loss:
            self._note(f"{path} gives shares that sum to 1; cross-entropy takes the outputs before a softmax")
        models.activations(network, facts.in_shape)
        if not support.together:
            self._note(f"{path} runs lane by lane, which takes longer: {support.why}")
        first, second = (list(models.trained(initialise(build, seed)).values()) for seed in (0, 1))
        if all(map(torch.equal, first, second)):
            self._note(f"{path} begins with the same parameters whatever the seed ({size})")
        if support.whole:
            try:
                network.train()
                network(inputs[:1])
            except Exception as error:  # noqa: BLE001  whatever the user's module raises
                self.answer.lone = describe_error(error, path.partition(":")[0])


def _about(name: str, request: Request) -> str:
    """A line about a user's data set for people."""
    if is_table(name):
        label = request.reading.get("label")
        return f"predicts {label}" if label else "images by class" if name.endswith("/") else "arrays"
    documented = (getattr(imported(name, request.code), "__doc__", None) or "").strip()
    return documented.splitlines()[0] if documented else f"from {name}"


def _check_outputs(network: torch.nn.Module, sample: Sample, path: str, size: str) -> torch.Tensor:
    """The outputs in evaluation; a `UserCodeError` unless they have the right shape and are finite."""
    network.eval()
    with torch.no_grad():
        outputs: torch.Tensor = network(sample.inputs)
    expected, shape = (len(sample.inputs), sample.facts.out_features), tuple(outputs.shape)
    if shape != expected:
        given = f"gives {shape} for {len(sample.inputs)} examples of {sample.facts.in_shape} ({size})"
        meaning = "a number for each class, or each number to be predicted"
        raise UserCodeError(f"{path}: {given}; expected {expected}: {meaning}")
    if not outputs.isfinite().all():
        raise UserCodeError(f"{path}: gives values that are not finite before any update ({size})")
    return outputs


def _try_function(path: str, what: str, sample: Sample, code: str) -> None:
    """Raise a `UserCodeError` unless a loss or score of noise has valid values, each example's own."""
    targets = sample.targets
    noise = torch.randn(len(targets), sample.facts.out_features, generator=torch.Generator().manual_seed(1))
    outputs = noise.to(targets.dtype if targets.is_floating_point() else torch.float32)
    values = called_on(path, what, outputs, targets, code).double()
    low, high = float(values.min()), float(values.max())
    if not values.isfinite().all() or low < 0 or (what == "score" and high > 1):
        valid = "numbers from 0 to 1, larger is better" if what == "score" else "finite losses that are not negative"
        raise UserCodeError(f"{path}: gives {low:g} to {high:g} on the first examples; expected {valid}")
    for part in _PARTS:
        alone = called_on(path, what, outputs[part], targets[part], code).double()
        if not torch.allclose(values[part], alone, rtol=1e-3):
            raise UserCodeError(
                f"{path}: the result for an example depends on the other examples; return one result per example"
            )


def try_optimizer(path: str, code: str = "") -> None:
    """Raise a `UserCodeError` unless lanes of an optimizer are independent, and an interrupted one could resume.

    A torch optimizer must continue from its `state_dict`; a rule must update two lanes as it updates each alone.
    """
    rule = named(path, code)
    gradients = torch.randn(TRIED_UPDATES, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    doing = "an update"
    try:
        if rule.solo:
            parameters, doing = _by_torch(rule, gradients[:, 0]), "continuing from its state_dict"
            torch.manual_seed(0)
            if relative(_by_torch(rule, gradients[:, 0], cut=True), parameters) > TOLERANCE:
                raise UserCodeError(
                    f"{path}: continues differently after its state_dict is loaded into a new one, so no interrupted "
                    "trial could be resumed; keep what it remembers in self.state[parameter]"
                )
        else:
            rows = gradients.flatten(2)
            parameters = _by_rule(rule, rows)
            apart = torch.cat([_by_rule(rule, rows[:, lane : lane + 1]) for lane in range(2)])
            if relative(parameters, apart) > TOLERANCE:
                raise UserCodeError(
                    f"{path}: a lane's update depends on the lanes beside it; take norms, sums and means over "
                    "dimension 1, with keepdim=True, of what is (lanes, parameters)"
                )
    except UserCodeError:
        raise
    except Exception as error:
        raise UserCodeError(f"{path}: {doing} raised {describe_error(error, path.partition(':')[0])}") from error
    if not parameters.isfinite().all() or bool((parameters == 1).all()):
        raise UserCodeError(
            f"{path}: {TRIED_UPDATES} updates left parameters of ones at {parameters.flatten().tolist()[:3]}"
        )


def _by_torch(rule: Rule, gradients: torch.Tensor, *, cut: bool = False) -> torch.Tensor:
    """Parameters, (3, 4), that start at one, after updates with given gradients, (updates, 3, 4).

    The loss is linear, so an optimizer that evaluates it again gets the same gradient.

    Args:
        rule: of a torch optimizer.
        gradients: one per update.
        cut: whether each update is made by a new optimizer with the state of the one before.
    """
    module = torch.nn.Linear(4, 3, bias=False).double()
    weight = list(module.parameters())
    torch.nn.init.ones_(module.weight)
    optimizers = rule.optimizers(weight, 1e-3, {})
    for gradient in gradients:
        if cut:
            saved = [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]
            optimizers = rule.optimizers(weight, 1e-3, {})
            for optimizer, state in zip(optimizers, saved, strict=True):
                optimizer.load_state_dict(state)

        def loss(gradient: torch.Tensor = gradient) -> torch.Tensor:
            return (module.weight * gradient).sum()

        step(module, optimizers, loss)
    return module.weight.detach()


def _by_rule(rule: Rule, gradients: torch.Tensor) -> torch.Tensor:
    """Parameters, (lanes, 12), that start at one, after updates with given gradients, (updates, lanes, 12)."""
    parameters = torch.ones_like(gradients[0])
    state, rates = rule.state(parameters), torch.full_like(parameters[:, :1], 1e-3)
    for column, gradient in enumerate(gradients):
        row = {name: float(values[column, 0]) for name, values in rule.coefficients(1, len(gradients)).items()}
        kept = dict(state)
        rule.step(parameters, gradient.clone(), state, rates, row, rule.settings)
        if replaced := [name for name, tensor in kept.items() if state[name] is not tensor]:
            raise UserCodeError(f"{rule.name}: replaces the tensor state[{replaced[0]!r}]; change it in place")
    return parameters


def main() -> None:
    """Answer the request on standard input."""
    messages = Connection(int(sys.argv[1]), readable=False)
    request = Request(**json.load(sys.stdin))
    resource.setrlimit(resource.RLIMIT_DATA, (request.memory_bytes, resource.RLIM_INFINITY))
    torch.set_num_threads(1)
    sys.path += request.folders

    def tell(message: dict[str, Any]) -> None:
        messages.send_bytes(json.dumps(message).encode())

    tell(dataclasses.asdict(Probe(request, tell).run()))


if __name__ == "__main__":
    main()
