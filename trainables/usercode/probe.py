"""Tries what users bring, in a process of its own: `python -m trainables.inspection REQUEST ANSWER STAGE`.

Whatever a user's module does, hangs, exits or takes all memory, it does to this process alone. REQUEST is a JSON file
of `Request`; ANSWER is written at the end, and STAGE says at any time what is being tried and how long that may take.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from trainables import data, models
from trainables.criterion import called_on
from trainables.data import DataError, Facts
from trainables.engines.vmapped import updated
from trainables.lanes.equality import relative
from trainables.lanes.stack import initialise
from trainables.rules import Rule, named
from trainables.usercode.importing import ForeignError, files_elsewhere, imported, is_foreign, own_files, told, use
from trainables.usercode.vmap_support import manner_of

Result = TypeVar("Result")

# How long each may take, in seconds.
IMPORT_SECONDS, DATA_SECONDS, RUN_SECONDS = 60, 1800, 120
EXAMPLES = 16
_PARTS = (slice(0, 1), slice(-1, None), slice(0, EXAMPLES // 2), slice(EXAMPLES // 2, None))
# Updates by which an optimizer is tried: more than those after which some look ahead or average. Relative, float64.
TRIED_UPDATES, TOLERANCE = 25, 1e-9


@dataclass(frozen=True)
class Request:
    """What is to be tried.

    Attributes:
        code: folder of the copy of the user's modules.
        folders: where they were copied from; modules that the copy lacks are looked for there, last.
        data: a data set, of the catalogue or a user's.
        facts: of the catalogue's, as its fields; none of a user's.
        data_folder: where downloaded data lie.
        redraw: whether the data are to be drawn anew for each trial.
        model: import path of a user's; empty if it is a shipped family.
        networks: width, depth and arguments of the networks to build.
        optimizers, loss, score: import paths of a user's; empty if there are none.
        standardize, dtype: of the workload.
        memory_bytes: that may be taken.
    """

    code: str
    folders: list[str]
    data: str
    facts: dict[str, Any] | None
    data_folder: str
    redraw: bool
    model: str
    networks: list[dict[str, Any]]
    optimizers: list[str]
    loss: str
    score: str
    standardize: bool
    dtype: str
    memory_bytes: int


@dataclass
class Answer:
    """What came of it.

    Attributes:
        facts: of a user's data set, as fields of `Facts`.
        mistakes: what cannot be used, with its key in the spec and what was expected.
        notes: what should be known before the study runs.
        lacking: modules and packages that were imported and that the copy lacks.
        elsewhere: files of modules that were imported and are neither in the copy nor installed: path -> hash.
        lone: why the model cannot train on a single example, as where it normalises over the batch; empty if it can.
    """

    facts: dict[str, Any] | None = None
    mistakes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    elsewhere: dict[str, str] = field(default_factory=dict)
    lone: str = ""


class Inspection:
    """One request on its way to its answer."""

    def __init__(self, request: Request, stage: Path) -> None:
        self.request, self.stage, self.answer = request, stage, Answer()

    def run(self) -> Answer:
        """Try everything, as far as it depends on nothing that failed."""
        request = self.request
        paths = [("workload.data", "data", request.data), ("workload.model", "model", request.model)]
        paths += [("workload.loss", "loss", request.loss), ("workload.metric", "score", request.score)]
        paths += [("search.optimizer", "optimizer", path) for path in request.optimizers]
        for key, what, path in paths:
            if is_foreign(path):
                self._try(key, path, f"importing {path}", IMPORT_SECONDS, partial(imported, path, what))
        if not self.answer.mistakes:
            splits = self._data()
            for path in request.optimizers:
                self._try("search.optimizer", path, f"trying {path}", RUN_SECONDS, partial(_try_optimizer, path))
            if splits:
                facts, sample, targets = splits
                for key, what, path in (("loss", "loss", request.loss), ("metric", "score", request.score)):
                    if path:
                        judge = partial(_judge, path, what, facts, targets)
                        self._try(f"workload.{key}", path, f"trying {path}", RUN_SECONDS, judge)
                for network in request.networks:
                    if self.answer.mistakes:
                        break
                    size = ", ".join(f"{name} {value}" for name, value in network.items()) or "its size"
                    doing = f"building and running {request.model} of {size}"
                    self._try("workload.model", request.model, doing, RUN_SECONDS,
                              partial(self._network, network, facts, sample, size))  # fmt: skip
        self.answer.lacking, self.answer.elsewhere = sorted(own_files(request.folders)), files_elsewhere()
        return self.answer

    def _try(self, key: str, path: str, doing: str, seconds: float, work: Callable[[], Result]) -> Result | None:
        """Do something; what goes wrong is a mistake of a key."""
        self.stage.write_text(json.dumps({"key": key, "path": path, "doing": doing, "seconds": seconds}))
        try:
            return work()
        except (ForeignError, models.ModelError, DataError) as error:
            self.answer.mistakes.append(f"{key}: {error}")
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
                raise
            limit = self.request.memory_bytes / 2**30
            self.answer.mistakes.append(f"{key}: {path}: {doing} took more memory than the {limit:.1f} GiB there are")
        return None

    def _data(self) -> tuple[Facts, torch.Tensor, torch.Tensor] | None:
        """Facts of the data set, and a few examples: a user's own, or noise in the place of the catalogue's."""
        request, dtype = self.request, getattr(torch, self.request.dtype)
        if request.facts:
            facts = Facts(**{**request.facts, "in_shape": tuple(request.facts["in_shape"])})
            sample = torch.randn(EXAMPLES, *facts.in_shape, generator=torch.Generator().manual_seed(0)).to(dtype)
            targets = sample.new_zeros(EXAMPLES, facts.out_features)
            return facts, sample, targets if facts.task == "regression" else torch.zeros(EXAMPLES).long()
        make = partial(data.load, request.data, Path(request.data_folder), standardize=request.standardize, dtype=dtype)
        found = self._try("workload.data", request.data, f"loading {request.data}", DATA_SECONDS, make)
        if found is None:
            return None
        facts = data.facts_of(found, about=_about(request.data))
        self.answer.facts = dataclasses.asdict(facts)
        if request.redraw and not data.takes_seed(request.data):
            self.answer.mistakes.append(
                f"workload.redraw = true: {request.data} takes no seed by which it could be drawn anew; give it one"
            )
        if facts.task == "classification":
            self.answer.notes.append(
                f"{request.data} has whole numbers as targets, so they are {facts.out_features} classes; those "
                "of a regression are floats"
            )
        few = found.train.head(EXAMPLES)
        return facts, few.inputs, few.targets

    def _network(self, arguments: dict[str, Any], facts: Facts, sample: torch.Tensor, size: str) -> None:
        request = self.request
        build = partial(models.build, request.model, facts.in_shape, facts.out_features, **arguments)
        try:
            manner = manner_of(build, sample, request.model)
        except ForeignError as error:
            if request.standardize and "index out of range" in str(error):
                raise ForeignError(
                    f"{error}; inputs are standardised, token ids too, unless standardize = false"
                ) from error
            raise
        network = initialise(build, 0).to(sample.dtype)
        network.eval()
        with torch.no_grad():
            outputs = network(sample)
        wanted, got = (len(sample), facts.out_features), tuple(outputs.shape)
        if got != wanted:
            gives = f"gives {got} for {len(sample)} examples of {facts.in_shape} ({size}); expected {wanted}"
            raise ForeignError(f"{request.model}: {gives}: a number for each class, or each number to be predicted")
        if not outputs.isfinite().all():
            raise ForeignError(f"{request.model}: gives values that are not finite before any update ({size})")
        models.activations(network, facts.in_shape)
        note = f"{request.model} runs lane by lane, which takes longer: {manner.why}"
        if not manner.together and note not in self.answer.notes:
            self.answer.notes.append(note)
        first, second = (list(models.trained(initialise(build, seed)).values()) for seed in (0, 1))
        if all(map(torch.equal, first, second)):
            note = f"{request.model} begins with the same parameters whatever the seed ({size})"
            self.answer.notes += [note] if note not in self.answer.notes else []
        if manner.whole:
            try:
                network.train()
                network(sample[:1])
            except Exception as error:  # noqa: BLE001  whatever the user's module raises
                self.answer.lone = told(error, request.model.partition(":")[0])


def _judge(path: str, what: str, facts: Facts, targets: torch.Tensor) -> None:
    """Try a user's loss or score on outputs that are noise."""
    noise = torch.randn(len(targets), facts.out_features, generator=torch.Generator().manual_seed(1))
    outputs = noise.to(targets.dtype if targets.is_floating_point() else torch.float32)
    found = called_on(path, what, outputs, targets).double()
    low, high = float(found.min()), float(found.max())
    if not found.isfinite().all() or low < 0 or (what == "score" and high > 1):
        wanted = "numbers from 0 to 1, larger is better" if what == "score" else "finite losses that are not negative"
        raise ForeignError(f"{path}: gives {low:g} to {high:g} on the first examples; expected {wanted}")
    parts = [called_on(path, what, outputs[part], targets[part]).double() for part in _PARTS]
    if not all(torch.allclose(found[part], each, rtol=1e-3) for part, each in zip(_PARTS, parts, strict=True)):
        raise ForeignError(f"{path}: what it gives for an example depends on the others; return each its own")


def _about(path: str) -> str:
    """The first line of what a user's data set says of itself."""
    text = (getattr(imported(path, "data"), "__doc__", None) or "").strip()
    return text.splitlines()[0] if text else f"from {path}"


def _try_optimizer(path: str) -> None:
    """Some updates of a few numbers, which must be the same however lanes are cut and put together."""
    rule = named(path)
    gradients = torch.randn(TRIED_UPDATES, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    doing = "an update"
    try:
        if rule.solo:
            found, doing = _by_torch(rule, gradients[:, 0]), "going on from its state_dict"
            torch.manual_seed(0)
            if relative(_by_torch(rule, gradients[:, 0], cut=True), found) > TOLERANCE:
                raise ForeignError(
                    f"{path}: goes on differently where its state_dict is loaded into a new one, so no interrupted "
                    "trial could be resumed; keep what it remembers in self.state[parameter]"
                )
        else:
            rows = gradients.flatten(2)
            found = _by_rule(rule, rows)
            apart = torch.cat([_by_rule(rule, rows[:, lane : lane + 1]) for lane in range(2)])
            if relative(found, apart) > TOLERANCE:
                raise ForeignError(
                    f"{path}: a lane's update depends on the lanes beside it; take norms, sums and means over "
                    "dimension 1, with keepdim=True, of what is (lanes, parameters)"
                )
    except ForeignError:
        raise
    except Exception as error:
        raise ForeignError(f"{path}: {doing} raised {told(error, path.partition(':')[0])}") from error
    if not found.isfinite().all() or bool((found == 1).all()):
        raise ForeignError(f"{path}: {TRIED_UPDATES} updates left parameters of ones at {found.flatten().tolist()[:3]}")


def _by_torch(rule: Rule, gradients: torch.Tensor, *, cut: bool = False) -> torch.Tensor:
    """Parameters of ones, (3, 4), after updates with given gradients; cut, each by a new optimizer with the old state.

    One that asks for the loss gets that of a linear function, whose gradient stays.
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

        updated(module, optimizers, loss)
    return module.weight.detach()


def _by_rule(rule: Rule, gradients: torch.Tensor) -> torch.Tensor:
    """Parameters of ones, (lanes, 12), after updates with given gradients, (updates, lanes, 12)."""
    parameters = torch.ones_like(gradients[0])
    state, rates = rule.state(parameters), torch.full_like(parameters[:, :1], 1e-3)
    for column, gradient in enumerate(gradients):
        row = {name: float(values[column, 0]) for name, values in rule.coefficients(1, len(gradients)).items()}
        kept = dict(state)
        rule.step(parameters, gradient.clone(), state, rates, row, rule.settings)
        if anew := [name for name, tensor in kept.items() if state[name] is not tensor]:
            raise ForeignError(
                f"{rule.name}: puts another tensor in the place of state[{anew[0]!r}]; change it in place"
            )
    return parameters


def main() -> None:
    """See the module."""
    request_file, answer_file, stage = map(Path, sys.argv[1:])
    request = Request(**json.loads(request_file.read_text(encoding="utf-8")))
    resource.setrlimit(resource.RLIMIT_DATA, (request.memory_bytes, resource.RLIM_INFINITY))
    torch.set_num_threads(1)
    sys.path += request.folders
    use(request.code)
    answer = Inspection(request, stage).run()
    answer_file.write_text(json.dumps(dataclasses.asdict(answer)), encoding="utf-8")


if __name__ == "__main__":
    main()
