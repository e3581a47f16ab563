"""Networks that were not written for a study: arguments are matched by name; those of two libraries have names."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Sequence
from functools import partial
from textwrap import shorten
from typing import Any

from torch import Tensor, nn

from trainables.usercode.importing import UserCodeError, called, describe_error, imported

# What networks of other packages are named by.
LIBRARIES = ("torchvision:", "timm:")
# What a model is given -> other names that its arguments may have.
OTHER_NAMES = {
    "in_shape": "input_shape",
    "in_features": "input_size input_dim in_dim n_features num_features n_inputs num_inputs n_in d_in",
    "in_channels": "in_chans channels num_channels n_channels input_channels",
    "image_size": "img_size",
    "out_features": "num_classes n_classes classes output_size output_dim out_dim n_outputs num_outputs n_out d_out",
    "width": "hidden_size hidden_dim hidden_features hidden_units hidden n_hidden d_model dim",
    "depth": "num_layers n_layers layers num_hidden_layers num_blocks n_blocks",
}
_OURS = {theirs: ours for ours, names in OTHER_NAMES.items() for theirs in names.split()}
# Errors of Python about a number where a list is needed.
_NO_NUMBER = (
    "'int' object is not (iterable|subscriptable)|'int' has no len|iterable, not int|not \"int\"|'int' and 'list'"
)


class Coloured(nn.Module):
    """Repeats the only channel of grey images three times."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, height, width) -> (B, 3, height, width)."""
        return x.expand(-1, 3, -1, -1)


class Named(str):
    """A value that a call shows by its name, as it differs between cells."""

    __repr__ = str.__str__


def own_model(path: str, given: dict[str, Any], bundle: str = "") -> Any:
    """What a user's class or function returns for those arguments that it has names for.

    It may lack names for in_shape and out_features, since its outputs are compared with the data's.

    Args:
        path: import path.
        given: in_shape, out_features, width and depth if they are searched, and the keys of `model_args`.
        bundle: folder of the bundle.

    Raises:
        UserCodeError: if it needs others, lacks names for the rest, is given a list, or raises; the message has a
            function that adapts it.
    """
    maker = imported(path, bundle)
    if isinstance(maker, nn.Module):
        advice = "every lane needs a new one: name a class, or a function that returns it"
        raise UserCodeError(f"{path}: is a {type(maker).__name__} that is built already; {advice}")
    signature, arguments, rest = _call(maker, given)
    if signature is None:
        return called(path, "model", given, code=bundle)
    if lists := [name for name, value in arguments.items() if isinstance(value, list)]:
        value, as_text = given[lists[0]], "-".join(map(str, given[lists[0]]))
        text = f"{lists[0]} = {value}: a value of model_args is a number, text, true or false, not a list"
        advice = f'Leave it out if it has a default, or write text that a function of yours splits, as "{as_text}"'
        raise UserCodeError(f"{path}: {text}. {advice}. Or a{_adapter(path, signature, given, arguments, lists)[1:]}")
    needed = _needed(signature, arguments)
    unused = [name for name in rest if name not in ("in_shape", "out_features")]
    if needed or unused:
        plain = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
        shown = signature.replace(parameters=plain, return_annotation=signature.empty)
        words = [f"nothing says what {', '.join(needed)} should be"] * bool(needed)
        words += [f"it has no argument for {', '.join(unused)}"] * bool(unused)
        text = f"{path}{shown}: cannot be called with {', '.join(given)}: {' and '.join(words)}"
        raise UserCodeError(f"{text}. {_adapter(path, signature, given, arguments)}")
    try:
        return called(path, "model", arguments, code=bundle)
    except UserCodeError as error:
        text = f"{error}; the call was {own_call(path, given, bundle).partition(':')[2]}"
        lists = _taken_for_number(str(error), given, arguments)
        if isinstance(error.__cause__, TypeError) and (lists or set(arguments) - set(given)):
            reason = f"{lists[0]} may be a list" if lists else "one of them may have another meaning"
            text += (
                f": arguments are matched by name, and {reason}. {_adapter(path, signature, given, arguments, lists)}"
            )
        raise UserCodeError(text) from error


def own_call(path: str, given: dict[str, Any], bundle: str = "") -> str:
    """The call of `own_model` in words, with defaults: `nets:Net(n_in=13, hidden=width, p_drop=0.1)`."""
    signature, arguments, _ = _call(imported(path, bundle), given)
    parameters = signature.parameters if signature else {}
    values = {name: each.default for name, each in parameters.items() if each.default is not each.empty} | arguments
    names = [name for name in dict.fromkeys([*parameters, *values]) if name in values]
    shown = (getattr(values[name], "__name__", None) or shorten(repr(values[name]), 60) for name in names)
    return f"{path}({', '.join(f'{name}={value}' for name, value in zip(names, shown, strict=True))})"


def _call(maker: Any, given: dict[str, Any]) -> tuple[inspect.Signature | None, dict[str, Any], dict[str, Any]]:
    """The signature of a model, None if Python does not know it; its arguments; and what is given but not used."""
    try:
        signature = inspect.signature(maker)
    except (TypeError, ValueError):
        return None, given, {}
    arguments, rest = _matched(_names(signature), given)
    if any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values()):
        if any(name not in given for name in arguments):  # it passes on what in_shape and out_features may not be for
            rest = {name: value for name, value in rest.items() if name not in ("in_shape", "out_features")}
        arguments, rest = arguments | rest, {}
    return signature, arguments, rest


def _names(signature: inspect.Signature) -> list[str]:
    """The parameters that can be given by name."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, each in signature.parameters.items() if each.kind in kinds]


def _needed(signature: inspect.Signature, arguments: dict[str, Any]) -> list[str]:
    """The parameters that have neither a value nor a default."""
    names = (name for name in _names(signature) if name not in arguments)
    return [name for name in names if signature.parameters[name].default is inspect.Parameter.empty]


def _matched(names: list[str], given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments for parameters of some names, and what is given but stands for none of them."""
    shape = given["in_shape"]
    values = {"in_features": math.prod(shape), **given}
    values |= {"in_channels": shape[0], "image_size": shape[-1]} if len(shape) == 3 else {}
    meant = {name: name if name in values or _OURS.get(name) in names else _OURS.get(name, name) for name in names}
    arguments = {name: values[ours] for name, ours in meant.items() if ours in values}
    used = {meant[name] for name in arguments}
    if used & {"in_features", "in_channels", "image_size"}:
        used.add("in_shape")
    return arguments, {name: value for name, value in given.items() if name not in used}


def _taken_for_number(error: str, given: dict[str, Any], arguments: dict[str, Any]) -> list[str]:
    """The argument that got a number and is a list, if Python says so and only one can be meant."""
    if not re.search(_NO_NUMBER, error):
        return []
    meanings = {name: name if name in given else _OURS.get(name, name) for name in arguments}
    ours = [name for name in OTHER_NAMES if name not in ("width", "depth")]
    numbers = [name for name, value in arguments.items() if type(value) is int and meanings[name] not in ours]
    return numbers if len(numbers) == 1 else []


def _adapter(
    path: str,
    signature: inspect.Signature,
    given: dict[str, Any],
    arguments: dict[str, Any],
    lists: Sequence[str] = (),
) -> str:
    """A function to put beside a model whose arguments do not match, and how to use it.

    Args:
        path: import path of the model.
        signature: of the model.
        given: what models are called with.
        arguments: names that have a value.
        lists: names of lists; width and depth are searched for those of layer sizes.
    """
    module, _, name = path.partition(":")
    sizes = ("width", "depth") if lists else ()
    offered = [each for each in dict.fromkeys([*given, *sizes]) if each not in lists]
    values = {each: _source_of(each, given) for each in arguments} | dict.fromkeys(_needed(signature, arguments), "...")
    values |= {each: "[width] * depth" if _may_be_sizes(given.get(each, [])) else "..." for each in lists}
    advice = f'Adapt it in {module}.py, and write model = "{module}:adapted"'
    if lists:
        advice += ", with width and depth in [search]"
        advice += "".join(f" and no {each} in model_args" for each in lists if each in given)
    if "..." in values.values():
        advice += f"; replace each ... by an expression of {', '.join(offered)}"
    call = f"{name}({', '.join(f'{each}={value}' for each, value in values.items())})"
    lines = ["import torch"] * ("torch." in call)
    lines += [f"def adapted({', '.join(offered)}):", f"    return {call}"]
    return "\n      ".join([f"{advice}:", *lines])


def _may_be_sizes(value: Any) -> bool:
    """Whether a number, or the numbers of a list, may be sizes of layers."""
    return all(type(each) is int for each in (value if isinstance(value, list) else [value]))


def _source_of(name: str, given: dict[str, Any]) -> str:
    """The expression for an argument within a function that has the names of what is given."""
    ours = name if name in given else _OURS.get(name, name)
    places = {"in_features": "torch.Size(in_shape).numel()", "in_channels": "in_shape[0]", "image_size": "in_shape[-1]"}
    return places.get(ours, ours)


def library_model(path: str, given: dict[str, Any]) -> nn.Module:
    """A classification network of torchvision or timm with random weights, for grey inputs too.

    Args:
        path: `torchvision:NAME` or `timm:NAME`.
        given: in_shape, out_features, and the keys of `model_args`.

    Raises:
        UserCodeError: if the library is not installed, or has no such network, or not for these images.
    """
    library, name = path.split(":", 1)
    shape = given["in_shape"]
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UserCodeError(f"{path}: needs images (1 or 3 channels, height, width); these inputs have shape {shape}")
    if sizes := [size for size in ("width", "depth") if size in given]:
        message = f"cannot be called with {' and '.join(sizes)}: {library}'s networks have sizes of their own"
        raise UserCodeError(f"{path}: {message}; leave out search.{' and search.'.join(sizes)}")
    arguments = {key: value for key, value in given.items() if key not in ("in_shape", "out_features")}
    arguments["num_classes"] = given["out_features"]
    if library == "timm":
        try:
            import timm
        except ImportError as error:
            raise UserCodeError(f"{path}: needs the package timm; `pip install timm`") from error
        known, make = timm.list_models(), partial(timm.create_model, in_chans=shape[0])
    else:
        from torchvision import models

        known, make = models.list_models(module=models), partial(models.get_model, weights=None)
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name.lower(), known, 3)) or ", ".join(known[:5])
        raise UserCodeError(f"{path}: {library} has no such network for classes; similar: {near}")
    try:
        network: nn.Module = make(name, **arguments)
    except (TypeError, ValueError) as error:
        raise UserCodeError(f"{path}: raised {describe_error(error, library)}") from error
    return nn.Sequential(Coloured(), network) if library == "torchvision" and shape[0] == 1 else network
