"""The best setting of a study as a trained network, and as the lines that train it.

A confirmation keeps the parameters of its lanes if they are few; otherwise the lanes are trained again, by the same
program on the same seeds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from analysis import results
from analysis.cells import fresh_lanes
from analysis.report.best import best_entry, facts
from analysis.results import Results, table_of
from analysis.text import counted, metric_text
from study.errors import Halted, UsageError, require
from study.results.confirm import confirmation
from study.results.recipe import recipe
from study.spec import recorded
from study.spec.model import Confirm
from study.tuning.space import Space
from study.usercode import bundle
from trainables import storage
from trainables.config import TrialConfig
from trainables.lanes.seeds import initialise
from trainables.tune import trainable
from trainables.usercode.importing import UserCodeError, is_own
from trainables.workloads import models
from trainables.workloads.data import Data, load

Format = Literal["pt", "pt2", "onnx"]
FORMATS: tuple[Format, ...] = ("pt", "pt2", "onnx")
# Raised where a file is none of ours: by torch.load, or for want of a key.
_NO_NETWORK = (UnpicklingError, EOFError, RuntimeError, LookupError, AttributeError, TypeError, ValueError)


class Affine(nn.Module):
    """Multiplies by a factor and adds a term; tensors that broadcast against one example."""

    factor: Tensor
    term: Tensor

    def __init__(self, factor: Tensor, term: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)
        self.register_buffer("term", term)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x * self.factor + self.term


@dataclass(frozen=True)
class Setting:
    """The best setting of a study, of all or of one optimizer."""

    results: Results  # the study
    cell: pd.Series[Any]  # its row of `analysis.cells`
    config: TrialConfig  # a trial that trains it on the confirmation's seeds
    facts: dict[str, Any]  # what `analysis.best` says of it

    @classmethod
    def of(cls, place: str | Path, optimizer: str = "") -> Setting:
        """The setting; errors are those of `analysis.best` and `study.read`."""
        study = results.load(place)
        compared, entry = best_entry(study, optimizer)
        cell = entry.cell
        assert cell is not None
        if theirs := bundle.origin(study.path, place):
            print(f"study: note: runs {theirs}", file=sys.stderr)
        spec = recorded(study.path)
        code, tuned = bundle.code_of(study.path), json.loads(cell["recipe"] or "{}")
        fixed = {0: {"learning_rate": float(cell["learning_rate"]), **tuned}}
        final = confirmation(spec if spec.confirm else spec.model_copy(update={"confirm": Confirm()}), 1)
        code_folder = str(code.absolute()) if code else ""  # the printed lines run from any folder
        space = Space(final, str(storage.data_folder()), "", fixed, code=code_folder)
        row = {str(name): value.item() if isinstance(value, np.generic) else value for name, value in cell.items()}
        config = TrialConfig.of(space.configuration(space.cell_of(row), 0))
        config = replace(config, checkpoint=None, device="auto", weights=True)
        return cls(study, cell, config, facts(study, compared, entry))

    @cached_property
    def data(self) -> Data:
        """As the setting is trained on it."""
        return self._load(standardize=self.config.standardize)

    def _load(self, *, standardize: bool) -> Data:
        config = self.config
        return load(
            config.data,
            standardize=standardize,
            seed=config.data_seed,
            dtype=getattr(torch, config.dtype),
            code=config.code,
            reading=config.reading(),
            images=config.model == "cnn",
        )

    def network(self, seed: int = 0) -> nn.Module:
        """The network before training, as the lane with this seed starts from it."""
        size: dict[str, Any] = {"width": self.config.width, "depth": self.config.depth, "bundle": self.config.code}
        shape, outputs = self.data.in_shape, self.data.out_features
        network = initialise(
            lambda: models.build(self.config.model, shape, outputs, **size, **self.config.model_args), seed
        )
        return network.to(self.data.train.inputs.dtype)

    def recipe(self) -> str:
        """The lines of torch that train it."""
        return recipe(self.config, self.network(), self.data, int(self.cell["updates"]))

    @cached_property
    def lane(self) -> dict[str, Any]:
        """The row of the lanes table with the best validation metric on fresh seeds; its weights are those at the end.

        Raises:
            Halted: if it has to be trained again, and that fails.
        """
        lanes = fresh_lanes(self.results, self.cell.to_frame().T)
        lanes = lanes[lanes["seed"].isin(self.config.seeds)]  # only the first look keeps parameters
        if lanes.empty or lanes["weights"].isna().any():
            lanes = pd.DataFrame(self._trained_again()).assign(again=True)
        column, maximize = f"validation_{self.results.metric}", self.results.maximize
        finite = lanes[lanes[column].notna() & lanes["weights"].notna()]
        if finite.empty:
            raise Halted(f"{self.results.path}: every fresh seed of the best setting diverged, so there is no network")
        ordered = finite.sort_values([column, "seed"], ascending=[not maximize, True])
        return {str(name): value for name, value in ordered.iloc[0].items()}

    def _trained_again(self) -> list[dict[str, Any]]:
        """The lanes of the confirmation, as its worker trains them."""
        trial = trainable(self.config.model)(asdict(self.config))
        rows: list[dict[str, Any]] = []
        while True:
            result = trial.train()  # type: ignore[no-untyped-call]
            rows = result["payload"].lanes or rows
            if result["done"]:
                break
        if "error" in result:
            last = result["error"].strip().splitlines()[-1]
            raise Halted(f"{self.results.path}: the best setting cannot be trained again: {last}")
        return rows

    def module(self) -> nn.Module:
        """The trained network of raw inputs, whose outputs are in the unit of the raw targets, in evaluation mode."""
        network = self.network(int(self.lane["seed"]))
        fill(network, np.array(self.lane["weights"], dtype=np.float64))
        layers: list[nn.Module] = [network]
        if self.config.standardize:
            shape = (-1, *[1] * (len(self.data.in_shape) - 1))
            mean, std = (
                torch.tensor(each, dtype=torch.float64).view(shape) for each in (self.data.mean, self.data.std)
            )
            layers.insert(0, Affine(1 / std, -mean / std))
            if self.data.task == "regression":
                layers.append(Affine(*self._unit()))
        return nn.Sequential(*layers).to(self.data.train.inputs.dtype).eval()

    def _unit(self) -> tuple[Tensor, Tensor]:
        """The factor and the term by which standardised targets become raw ones, (outputs,) each, from two examples."""
        raw, ours = (split.targets.double() for split in (self._load(standardize=False).train, self.data.train))
        low, high = ours.min(0), ours.max(0)
        span = raw.gather(0, high.indices[None]) - raw.gather(0, low.indices[None])
        factor = (span / (high.values - low.values).clamp(min=1e-300))[0]
        return factor, raw.gather(0, low.indices[None])[0] - factor * low.values

    def card(self, file: Path, kind: str) -> str:
        """The model card of an exported file of a format, as Markdown."""
        metric, lane = self.results.metric, self.lane
        scores = ", ".join(
            f"{split} {metric} {metric_text(float(lane[f'{split}_{metric}']), metric)}"
            for split in ("validation", "test")
        )
        again = " It was trained again for this file, as the study kept no weights." if lane.get("again") else ""
        facts, named = self.data, recorded(self.results.path).workload.facts
        unit = "scores (logits) of the classes, in the order above" if named.classes else "class scores (logits)"
        if facts.task == "regression":
            unit = f"{counted(facts.out_features, 'value')} in the unit of the targets"
        (*_, session) = self.results.provenance.get("sessions") or [{}]
        versions = table_of(session, "versions") | {"torch, at export": torch.__version__}
        return _CARD.format(
            file=file.name,
            study=self.results.name,
            text=self.facts["text"],
            lane=f"The network of seed {lane['seed']}, the best of the fresh seeds by validation {metric}: {scores}.",
            again=again,
            data=f"{facts.name}: {len(facts.train):,} training, {len(facts.validation):,} validation and "
            f"{len(facts.test):,} test examples",
            inputs=f"{facts.in_shape}, {self.config.dtype}, not standardised: the network does that"
            + (f"; columns in this order: {', '.join(named.columns)}" if named.columns else ""),
            use=usage(file.name, kind, self.config.model, facts.in_shape, self.config.dtype, named.classes),
            outputs=unit,
            versions=", ".join(f"{name} {value}" for name, value in versions.items()),
            recipe=self.recipe(),
            spec=self.results.spec_text,
        )


_CARD = """# {file}

The best setting of the study `{study}`: {text}.

{lane}{again}

```python
{use}
```

| | |
| --- | --- |
| data | {data} |
| inputs | (n, *shape), shape {inputs} |
| outputs | {outputs} |
| versions | {versions} |

## Training

```python
{recipe}
```

## Spec

```toml
{spec}```
"""


def usage(file: str, kind: str, model: str, in_shape: tuple[int, ...], dtype: str, classes: Sequence[str] = ()) -> str:
    """Lines that load an exported file and apply it to zeros.

    Args:
        file: its name.
        kind: its format.
        model: a family, or the path of a user's model.
        in_shape: shape of an example.
        dtype: of an example, float32 or float64.
        classes: their names, if they have names.
    """
    shape, option = ", ".join(map(str, (1, *in_shape))), "" if dtype == "float32" else f", dtype=torch.{dtype}"
    apply = [f"x = torch.zeros({shape}{option})  # raw inputs, for example of one row"]
    apply += ["outputs = network(x)  # in evaluation mode already"]
    if kind == "onnx":
        lines = ["import numpy", "import onnxruntime", f'session = onnxruntime.InferenceSession("{file}")']
        lines.append(f'x = numpy.zeros(({shape}), dtype="{dtype}")  # raw inputs, for example of one row')
        lines.append("outputs, = session.run(None, {session.get_inputs()[0].name: x})")
    elif kind == "pt2":
        load = f'network = torch.export.load("{file}").module()  # without this project'
        lines = ["import torch", load, *apply]
    else:
        needs = f"  # needs the module {model.partition(':')[0]}" if is_own(model) else ""
        lines = ["import study", "import torch", f'network = study.model("{file}"){needs}']
        lines += ["# a .pt2 file of the same network loads in plain torch: study export FOLDER --to model.pt2", *apply]
    names = [f"classes = {list(classes)}", "print([classes[number] for number in outputs.argmax(1).tolist()])"]
    return "\n".join([*lines, *(names if classes else ["print(outputs)"])])


def fill(network: nn.Module, weights: np.ndarray) -> None:
    """Set a network's trained parameters, then its buffers, from one row of numbers, as the lanes table holds them."""
    tensors: list[Tensor] = [*models.trained(network).values()]
    tensors += [] if models.layered(network) else network.buffers()
    start = 0
    with torch.no_grad():
        for tensor in tensors:
            values = torch.from_numpy(weights[start : start + tensor.numel()])
            tensor.copy_(values.view(tensor.shape))
            start += tensor.numel()
    if start != len(weights):
        raise Halted(f"the study holds {len(weights)} weights of a network that has {start}: its data or model changed")


def model(place: str | Path, optimizer: str = "") -> nn.Module:
    """The trained network of a study's best setting, in evaluation mode.

    Args:
        place: a results folder or its URI, or a `.pt` file that `study export` wrote. The file is read without
            unpickling; a user's model is imported again, from the working folder.
        optimizer: whose best setting; that of the first in the comparison if empty.

    Returns:
        A module of raw inputs, (n, *in_shape): it standardises them as the study did. Its outputs are logits, or values
        in the unit of the raw targets.
    """
    if not Path(place).is_file():
        return Setting.of(place, optimizer).module()
    try:
        saved = torch.load(place, weights_only=True)
        layers = [models.build(**saved["network"])]
    except UserCodeError as error:
        raise UsageError(
            str(place), f"needs the module of its network ({error}); a results folder has it in code/"
        ) from None
    except _NO_NETWORK as error:  # torch's text advises to unpickle files that it cannot read
        why = type(error).__name__
        raise UsageError(str(place), f"is not a file of `study export --format pt` ({why})") from None
    for name in ("input", "output"):
        if name in saved:
            layers.insert(0 if name == "input" else len(layers), Affine(*saved[name]))
    network = nn.Sequential(*layers).to(saved["dtype"])
    network.load_state_dict(saved["state"])
    return network.eval()


def export(place: str | Path, to: Path, kind: Format | None = None, optimizer: str = "") -> list[Path]:
    """Write the trained network of a study's best setting, and a model card beside it.

    Args:
        place: a results folder, or its URI.
        to: the file; its folder must exist.
        kind: pt, for `study.model`; pt2, `torch.export`'s; or onnx. By default what the file's name ends with.
        optimizer: whose best setting; that of the first in the comparison if empty.

    Returns:
        The files: the network, then its card.

    Raises:
        UsageError: if the format is unknown or its package is missing.
        ResultsError, SpecError, DataError, Halted: if there is no such setting, or it cannot be trained again.
    """
    suffix = kind or to.suffix.removeprefix(".")
    if suffix not in FORMATS:
        raise UsageError(f"--to {to}", f"ends with no known format; valid: {', '.join(FORMATS)}; or give --format")
    if not to.absolute().parent.is_dir():
        raise UsageError(f"--to {to}", f"there is no folder {to.parent}; make it first")
    if suffix == "onnx":
        require("onnxscript", "onnx")
    setting = Setting.of(place, optimizer)
    module, example = setting.module(), setting.data.test.head(2).inputs
    if suffix == "pt":
        storage.write(to, lambda stream: torch.save(_plain(setting, module), stream))
    else:
        storage.write(to, lambda stream: _traced(module, example, suffix, stream))
    card = to.with_name(f"{to.name}.md")  # of each format its own
    storage.write_text(card, setting.card(to, suffix))
    return [to, card]


def _plain(setting: Setting, module: nn.Module) -> dict[str, Any]:
    """Everything that `model` needs, as tensors, numbers, text, lists and dicts."""
    config, affine = setting.config, [layer for layer in module.children() if isinstance(layer, Affine)]
    network = {"family": config.model, "in_shape": setting.data.in_shape, "out_features": setting.data.out_features}
    network |= {"width": config.width, "depth": config.depth, **config.model_args}
    saved = {"network": network, "state": module.state_dict(), "dtype": setting.data.train.inputs.dtype}
    return saved | {name: [each.factor, each.term] for name, each in zip(("input", "output"), affine, strict=False)}


def _traced(module: nn.Module, example: Tensor, kind: str, stream: BinaryIO) -> None:
    """Write a module through torch's exporter, for batches of any size."""
    shapes = ({0: torch.export.Dim("batch")},)
    with torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=shapes)
    if kind == "pt2":
        torch.export.save(program, stream)
        return
    converted = torch.onnx.export(program, (), dynamo=True)
    assert converted is not None
    stream.write(converted.model_proto.SerializeToString())
