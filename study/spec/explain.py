"""One line for each mistake in a spec: its key, its value, what is wrong, and what to write instead."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from study.spec.dimensions import VALID, shown, similar
from study.spec.lanes import FORMS
from study.spec.model import Spec

# Examples of keys that have no default and are not numbers.
_EXAMPLES: dict[str, Any] = {
    "name": "my-study",
    "workload.data": "digits",
    "workload.model": "mlp",
    "workload.model_args": {"kernel": 3},
    "workload.task": "classification",
    "workload.label_smoothing": 0.1,
    "workload.label": "species",
    "workload.features": ["length", "width"],
    "workload.exclude": ["date"],
    "workload.split_column": "split",
    "workload.group_column": "patient",
    "workload.augment": {"rotate": 10.0},
    "workload.model_args.shape": "constant",
    "workload.model_args.activation": ["relu", "gelu"],
    "workload.model_args.norm": "batch",
    "workload.model_args.dropout": [0.0, 0.2],
    "workload.model_args.residual": True,
    "workload.model_args.init": "kaiming",
    "search.width": [16, 64],
    "search.depth": [1, 2],
    "search.batch_size": [32, "full"],
    "search.optimizer": ["sgd", "adam"],
    "search.settings": {"momentum": {"momentum": [0.9, 0.99]}},
    "baseline.name": "what we use",
    "baseline.optimizer": "adam",
    "baseline.learning_rate": 0.001,
    "lanes.learning_rate": {"low": 0.001, "high": 0.1, "count": 5},
    "lanes.schedule": ["constant", "cosine"],
    "lanes.warmup": 0.1,
    "lanes.clip_norm": 1.0,
    "lanes.clip_value": 0.5,
    "lanes.ema": 0.999,
    "lanes.weight_decay": [0.0, 0.0005],
    "budget.epochs": 10,
    "budget.updates": 1000,
    "tuning.scheduler": "asha",
    "tuning.timeout": "2h",
    "tuning.warm_start": "results/earlier",
    "tuning.storage": "sqlite:///study.db",
    "recording.mlflow": "http://127.0.0.1:5000",
    "resources.gpus_per_trial": 1,
}
# Sections of which a spec may have several: baselines, and cells to try first.
ARRAYS = ("baseline", "enqueue")
# Our key -> keys of torch, Keras, scikit-learn, Optuna and Ray Tune for the same.
_ELSEWHERE = {
    "workload.data": "dataset data_set datasets train_data data_path csv",
    "workload.model": "network net arch architecture model_name model_type",
    "workload.metric": "metrics objective monitor mode direction scoring eval_metric",
    "workload.loss": "criterion loss_fn loss_function objective_function",
    "workload.label_smoothing": "smoothing label_smooth smoothing_factor",
    "workload.label": "target_column label_column labels y response",
    "workload.split": "val_split validation_split test_size train_size valid_size",
    "workload.standardize": "normalize normalise standardise scale scaler",
    "workload.augment": "augmentation augmentations transform transforms",
    "workload.dtype": "precision",
    "workload.model_args.activation": "activation_fn activation_function act_fn hidden_act nonlinearity",
    "workload.model_args.norm": "batch_norm batchnorm batch_normalization layer_norm use_bn normalization",
    "workload.model_args.dropout": "dropout_rate dropout_prob dropout_p drop_rate p_dropout",
    "workload.model_args.residual": "skip skip_connection skip_connections",
    "workload.model_args.init": "weight_init initializer kernel_initializer init_method",
    "search.width": "hidden_size hidden_dim hidden_units hidden_layer_sizes units n_units num_hidden channels",
    "search.depth": "layers n_layers num_layers num_hidden_layers",
    "search.batch_size": "batch batchsize batch_sizes bs train_batch_size per_device_train_batch_size",
    "search.optimizer": "optimizers optim optimiser optimisers solver nesterov",
    "search.settings": "momentum betas beta1 beta2 beta_1 beta_2 eps epsilon rho alpha",
    "lanes.learning_rate": "lr lrs learning_rates base_lr init_lr learning_rate_init eta eta0 step_size",
    "lanes.seeds": "n_seeds num_seeds repeats n_repeats replicates cv",
    "lanes.weight_decay": "wd l2 l2_reg weight_decays",
    "lanes.ema": "ema_decay use_ema ema_momentum model_ema model_ema_decay averaging swa",
    "lanes.schedule": "scheduler_lr lr_scheduler lr_schedule learning_rate_schedule",
    "lanes.warmup": "warmup_steps warmup_ratio warmup_epochs num_warmup_steps",
    "lanes.clip_norm": "grad_clip clip gradient_clip_val gradient_clip max_grad_norm clipnorm",
    "budget.trials": "num_samples n_trials num_trials max_trials max_evals n_iter",
    "budget.epochs": "max_epochs n_epochs num_epochs nb_epoch num_train_epochs max_iter max_t",
    "budget.updates": "max_steps steps num_steps n_steps total_steps iterations",
    "tuning.timeout": "time_budget_s time_budget max_time timeout_s",
    "tuning.sampler": "search_alg search_algorithm algo algorithm tuner",
    "tuning.scheduler": "pruner grace_period reduction_factor early_stopping patience",
    "tuning.seed": "random_state random_seed rng",
    "recording.tensorboard": "tb log_to_tensorboard",
    "resources.cpus_per_trial": "cpu cpus num_cpus n_jobs num_workers n_workers threads",
    "resources.gpus_per_trial": "gpu gpus num_gpus n_gpus device devices accelerator cuda",
}
_TYPES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
# Mistakes of a section that are told.
MOST_TOLD = 20
# Names of limits in the order of telling -> words.
LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
# What pydantic says -> what we say.
_PHRASES = {
    "Input should be": "must be",
    "String should": "must",
    "List should have at least 1 item after validation, not 0": "needs at least one",
}
# What a section makes of other keys: model_args, and a metric of the user's.
INTERNAL = ("own_args", "score")


def explain(section: str, error: ValidationError) -> list[str]:
    """The mistakes that pydantic found in a section, one line each."""
    lines = []
    problems = error.errors(include_url=False)
    for problem in problems[:MOST_TOLD]:
        path = [section, *(str(part) for part in problem["loc"] if part not in (section, *FORMS))]
        path = ["model_args" if part == "own_args" else part for part in path]
        key, value, kind = _key(path), problem["input"], problem["type"]
        given = "" if isinstance(value, Mapping | BaseModel) else f" = {shown(value)}"
        if kind == "extra_forbidden":
            lines.append(unknown_key(path))
        elif kind == "missing":
            lines.append(missing(path))
        elif kind == "string_pattern_mismatch":
            lines.append(f"{key}{given}: {_pattern(key, value)}")
        elif kind in _TYPES:
            what = "an array of tables" if section in ARRAYS and kind == "list_type" else _TYPES[kind]
            number = {"int_type": r"-?\d+", "float_type": r"-?\d+(\.\d+)?(e-?\d+)?"}.get(kind)
            quoted = number and isinstance(value, str) and re.fullmatch(number, value)
            example = f"{path[-1]} = {value}" if quoted else _example(path)
            lines.append(f"{key} = {shown(value)}: must be {what}, as in {example}")
        elif LIMITS.keys() & set(problem.get("ctx", ())):
            lines.append(f"{key}{given}: must be {_limits(path, problem['ctx'])}")
        else:
            message = str(problem["ctx"]["error"]) if kind == "value_error" else problem["msg"]
            for theirs, ours in _PHRASES.items():
                message = message.replace(theirs, ours)
            repeated = f"{shown(value)}: "  # by a message about a name
            lines.append(f"{key}{given}: {message.removeprefix(repeated)}")
    if more := len(problems[MOST_TOLD:]):
        lines.append(f"{section}: has {more} further mistakes")
    return lines


def unknown_key(path: list[str]) -> str:
    """The line about a key that no section has there: where the same is set here, or the keys that are valid."""
    key, valid = path[-1], _fields_at(path[:-1])
    if path[:2] == ["lanes", "learning_rate"] and key == "log":
        return f"{_key(path)}: rates are always spaced on a log scale; leave it out"
    if ours := _ours(key.lower().replace("-", "_")):
        section, _, name = ours.rpartition(".")
        if path[0] in ARRAYS and name in valid:  # a baseline has a rate of its own
            return f"{_key(path)}: unknown key; write {_example([*path[:-1], name])}"
        return f"{_key(path)}: unknown key; write {name} = {_text(ours.split('.'))} in [{section}]"
    return f"{_key(path)}: unknown key{similar(key, valid)}{VALID}{', '.join(valid)}"


def missing(path: list[str]) -> str:
    """The line about a key or table that a spec must have."""
    if len(path) == 1 and path[0] != "name":
        return f"{path[0]}: missing; add the table [{path[0]}] with {', '.join(_fields_at(path))}"
    return f"{_key(path)}: missing; give one, as in {_example(path)}"


def _key(path: list[str]) -> str:
    """A path as text: `baseline[2].width` for a key of the second table of an array."""
    return re.sub(r"\.(\d+)", lambda place: f"[{int(place[1]) + 1}]", ".".join(path))


def _ours(key: str) -> str:
    """Our key, `section.name`, for another tool's, or for one that stands in the wrong section; empty if none."""
    keys = [f"{name}.{each}" for name in Spec.model_fields for each in _fields_at([name])]
    keys += [ours for ours in _ELSEWHERE if ours not in keys]
    return next((ours for ours in keys if key in [ours.rpartition(".")[2], *_ELSEWHERE.get(ours, "").split()]), "")


def _example(path: list[str]) -> str:
    """An assignment to a key that is valid."""
    path = [part for part in path if not part.isdigit()]  # the place in a list, or in an array of tables
    if len(path) == 1 and path[0] != "name":
        return f"[[{path[0]}]]" if path[0] in ARRAYS else f"[{path[0]}]"
    return f"{path[-1]} = {_text(path)}"


def _text(path: list[str]) -> str:
    """An example of a key's value as TOML: one of `_EXAMPLES`, the default, or a number."""
    example = _EXAMPLES.get(".".join(path), _EXAMPLES.get(f"baseline.{path[-1]}") if path[0] in ARRAYS else None)
    if example is None and (fields := _model_at(path[:-1])):
        field = fields.model_fields.get(path[-1])  # none of a free table, as of an optimizer's settings
        example = field.get_default(call_default_factory=True) if field else None
        if field and example in (None, PydanticUndefined):
            types = _types_in(field.annotation)
            example = 1 if int in types else 0.5 if float in types else None
    return "..." if example is None else shown(example)


def _limits(path: list[str], broken: Mapping[str, Any]) -> str:
    """Both limits of a number in words, also the one that is not broken."""
    places = [part for part in path if not part.isdigit()]
    fields = _model_at(places[:-1])
    field = fields.model_fields.get(places[-1]) if fields else None
    parts = [*field.metadata, *_types_in(field.annotation)] if field else []
    parts += [limit for each in parts if isinstance(each, FieldInfo) for limit in each.metadata]
    known = {name: getattr(each, name) for each in parts for name in LIMITS if hasattr(each, name)} or broken
    return " and ".join(f"{words} {known[name]:,}" for name, words in LIMITS.items() if name in known)


def _pattern(key: str, value: str) -> str:
    """What is wrong with a text that is not a name or import path; pydantic would print a regular expression."""
    if key != "name":
        usual = "; the usual loss needs no entry" if key == "workload.loss" else ""
        return f"must be an import path, as in mine:f for the function f in mine.py{usual}"
    fitting = re.sub(r"[^A-Za-z0-9._-]+", "-", value).strip("-._")
    advice = f'; write "{fitting}"' if fitting else ""
    return f"must be letters, digits, dots, dashes and underscores, beginning with a letter or digit{advice}"


def _model_at(path: list[str]) -> type[BaseModel] | None:
    """The section, or table in one, at a path; None if its keys are free."""
    model: Any = Spec
    for part in path:
        if part.isdigit() or part not in model.model_fields:  # the place in an array, or an optimizer's rates
            continue
        options = _types_in(model.model_fields[part].annotation)
        model = next((each for each in options if isinstance(each, type) and issubclass(each, BaseModel)), None)
        if model is None:
            return None
    return model  # type: ignore[no-any-return]


def _types_in(annotation: Any) -> list[Any]:
    """An annotation and the types within it."""
    return [annotation, *itertools.chain.from_iterable(map(_types_in, get_args(annotation)))]


def _fields_at(path: list[str]) -> list[str]:
    """The keys of the table at a path."""
    model = _model_at(path)
    if model is None:
        return []
    names = [*model.__annotations__, *model.model_fields]  # what the section says itself comes first
    return [name for name in dict.fromkeys(names) if name in model.model_fields and name not in INTERNAL]
