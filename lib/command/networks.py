"""Networks of the command line: from checkpoints and what their sidecars say, or from a function of the user's."""

import ast
import copy
import functools
import importlib
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .. import fusion, models
from ..checks import InputError, first_line
from ..models import Checkpoint
from ..records import portable


@dataclass(frozen=True)
class Architecture:
    """Of one network: the name of a registered architecture with its width, norm and further arguments, or
    package.module:function with arguments alone."""

    name: str
    width: float
    norm: str | None
    options: dict[str, Any]

    @property
    def registered(self) -> bool:
        """Whether it is one of `models.ARCHITECTURES`; any other is the user's own."""
        return ":" not in self.name

    def build(self) -> nn.Module:
        """A network of it, whatever its weights."""
        if self.registered:
            return models.build(self.name, width=self.width, norm=self.norm, seed=0, **self.options)
        return _own(self.name, self.options)

    def example(self) -> Tensor | None:
        """Inputs to trace with, where the architecture says their shape."""
        return models.example(self.name) if self.registered else None

    def spec(self) -> dict[str, Any]:
        """What a sidecar says of a registered one, so that it need not be said again."""
        return {"model": self.name, "width": self.width, "norm": self.norm, "options": self.options}


@dataclass(frozen=True)
class Parent:
    """A network that is to be fused: what it is called, what was read, and what it was built from."""

    name: str
    checkpoint: Checkpoint
    architecture: Architecture
    network: nn.Module

    @property
    def labels(self) -> list[int] | None:
        """The classes of its outputs, where its sidecar says that it has those alone."""
        spec = self.checkpoint.spec
        return list(spec["classes"]) if spec.get("own_classes") else None


def read_options(texts: Sequence[str]) -> dict[str, Any]:
    """--option NAME=VALUE, values as Python writes numbers, True, None; anything else is text."""
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"--option {text} cannot be read; accepted: NAME=VALUE, such as depth=4")
        with suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
        options[name] = value
    return options


def architecture(arguments: Namespace, spec: dict[str, Any], who: str) -> Architecture:
    """That of a network `who`, from a sidecar's `spec` and the options, which must not say otherwise."""
    name = arguments.model or spec.get("model")
    accepted = f"accepted: {', '.join(models.ARCHITECTURES)}, or package.module:function"
    if name is None:
        raise InputError(f"--model is missing, and no sidecar of {who} says it; {accepted}")
    own = arguments.model is not None and ":" in arguments.model
    if own:
        if arguments.width is not None or arguments.norm is not None:
            raise InputError(f"--width and --norm are for registered architectures; {name} takes --option NAME=VALUE")
        return Architecture(name, 1.0, None, read_options(arguments.option))
    if name not in models.ARCHITECTURES:
        raise InputError(f"unknown model {name!r}; {accepted}")
    norm = None if arguments.norm == "none" else arguments.norm
    given = {"model": arguments.model, "width": arguments.width}
    given |= {"norm": norm} if arguments.norm is not None else {}
    for key, value in given.items():
        if value is not None and key in spec and spec[key] != value or key == "norm" and spec.get(key, value) != value:
            raise InputError(
                f"--{key} {value} is not that of {who}, whose sidecar says {spec[key]}; accepted: leave it out"
            )
    options = spec.get("options") or {}
    if spec.get("own_classes"):
        options = options | {"classes": len(spec["classes"])}
    found = {"width": 1.0, "norm": None} | {k: spec[k] for k in ("width", "norm") if k in spec}
    found |= {key: value for key, value in given.items() if key in found and value is not None}
    return Architecture(name, float(found["width"]), found["norm"], options | read_options(arguments.option))


def _own(text: str, options: dict[str, Any]) -> nn.Module:
    """The network that package.module:function returns."""
    module, _, path = text.partition(":")
    if os.getcwd() not in sys.path:  # as for `python -m`; a command's own folder is elsewhere
        sys.path.insert(0, os.getcwd())
    try:
        made = functools.reduce(getattr, path.split("."), importlib.import_module(module))
        network = copy.deepcopy(made) if isinstance(made, nn.Module) else made(**options)
    except Exception as error:  # a module of anyone's may raise anything
        why = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(
            f"--model {text} gives no network ({why}); accepted: package.module:function, which can be imported from "
            "here and returns a torch.nn.Module"
        ) from None
    if not isinstance(network, nn.Module):
        raise InputError(
            f"--model {text} gives {type(network).__name__}; accepted: a function that returns a torch.nn.Module"
        )
    return network.eval()


def parents(arguments: Namespace) -> list[Parent]:
    """The networks that are to be fused.

    Raises:
        InputError: a checkpoint that cannot be read, that does not fit its architecture, or none that is known.
    """
    found: list[Parent] = []
    for typed in arguments.networks:
        checkpoint = models.read_checkpoint(models.find_checkpoint(typed))
        made = architecture(arguments, checkpoint.spec, checkpoint.path.name)
        try:
            network = fusion.load(checkpoint, made.build())
        except InputError as error:
            hint = (
                ""
                if checkpoint.spec or not made.registered
                else "; it has no sidecar: --width, --norm and --option say more"
            )
            raise InputError(f"{error}{hint}") from None
        name = portable(checkpoint.path).removesuffix(".safetensors").removeprefix("checkpoints/")
        number = 2
        while name in [parent.name for parent in found]:
            name, number = f"{name.partition(' (')[0]} ({number})", number + 1
        found.append(Parent(name, checkpoint, made, network))
    return found
