"""Networks run node by node, alone or several in lockstep."""

import operator
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.nn import functional as F

from ..checks import InputError
from .graph import Interpreter, on
from .groups import Groups

IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, F.relu_, torch.relu_)


Values = dict[fx.Node, object]


class _Stepper(Interpreter):
    """Runs stretches of a network's graph on a bag of values, dropping each after its last use.

    Args:
        own: the network's own graph, where it differs from `graph` in the numbers that nodes are given (sizes, counts
            of heads), and in nothing else.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, own: fx.Graph | None = None) -> None:
        super().__init__(model, graph)
        back = {} if own is None else dict(zip(own.nodes, graph.nodes, strict=True))
        self.given = {
            node: tuple(fx.map_arg(part, back.__getitem__) for part in (twin.args, twin.kwargs))
            for twin, node in back.items()
        }

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple, dict]:
        args, kwargs = self.given.get(n, (n.args, n.kwargs))
        return self.map_nodes_to_values(args, n), self.map_nodes_to_values(kwargs, n)

    def go(self, values: Values, nodes: Sequence[fx.Node], keep: fx.Node | None = None) -> None:
        self.env = values
        for node in nodes:
            values[node] = self.run_node(node)
            for spent in self.user_to_last_uses.get(node, []):
                if spent is not keep:
                    values.pop(spent, None)


def _bytes(bags: Sequence[Values]) -> int:
    storages = {t.data_ptr(): t.nbytes for bag in bags for t in bag.values() if isinstance(t, Tensor)}
    return sum(storages.values())


class Lockstep:
    """Several networks of one graph, chunk by chunk at the same place of it.

    The values alive at a place are kept for all images if they fit into `memory` bytes, so that each stretch of the
    graph runs once; where they do not fit, they are computed anew from the last place that did, at each pass.
    `own` is the graph of the last network, where that is of another size (`_Stepper`).
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        graph: fx.Graph,
        chunks: Sequence[Tensor],
        memory: float,
        own: fx.Graph | None = None,
    ) -> None:
        last = len(models) - 1
        self.steppers = [_Stepper(model, graph, own if i == last else None) for i, model in enumerate(models)]
        self.nodes = list(graph.nodes)
        self.index = {node: i for i, node in enumerate(self.nodes)}
        self.memory = memory
        self.modules = dict(models[0].named_modules())
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            raise InputError(f"correction 'least_squares' takes networks with one input; this one has {len(inputs)}")
        self.place = self.index[inputs[0]] + 1
        self.sizes = [len(chunk) for chunk in chunks]
        self.kept: list[list[Values]] = [[{inputs[0]: chunk} for _ in models] for chunk in chunks]

    def _overwrites(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return getattr(self.modules[node.target], "inplace", False)
        if isinstance(node.target, OpOverload):
            return node.target._schema.is_mutable
        by_name = isinstance(node.target, str) and node.op == "call_method" and node.target.endswith("_")
        return by_name or node.target in IN_PLACE or node.kwargs.get("inplace", False)

    def _run(self, bags: list[Values], index: int) -> list[Values]:
        stretch = self.nodes[self.place : index]
        bags = [dict(bag) for bag in bags]
        if any(map(self._overwrites, stretch)):
            bags = [{n: v.clone() if isinstance(v, Tensor) else v for n, v in bag.items()} for bag in bags]
        for stepper, bag in zip(self.steppers, bags, strict=True):
            stepper.go(bag, stretch)
        return bags

    def values(self, chunk: int, index: int) -> list[Values]:
        """The values of each network on one chunk that are alive just before node `index`."""
        return self._run(self.kept[chunk], index)

    def at(self, index: int) -> Iterator[list[Values]]:
        """The same for each chunk."""
        for chunk in range(len(self.kept)):
            yield self.values(chunk, index)

    def part(self, chunk: int) -> float:
        """The share of all images that are in this chunk."""
        return self.sizes[chunk] / sum(self.sizes)

    def move(self, index: int) -> None:
        """Keeps the values just before node `index` from now on, if they fit."""
        if index == self.place or _bytes(self._run(self.kept[0], index)) * len(self.kept) > self.memory:
            return
        for i, bags in enumerate(self.kept):
            self.kept[i] = self._run(bags, index)
        self.place = index

    def target(self, bags: list[Values], index: int, end: int, which: int) -> Values:
        """The values of network `which` just after node `end`, from `bags` at `index`."""
        stretch = self.nodes[index : end + 1]
        copied = any(map(self._overwrites, stretch))
        bag = {n: v.clone() if copied and isinstance(v, Tensor) else v for n, v in bags[which].items()}
        self.steppers[which].go(bag, stretch, self.nodes[end])
        return bag

    def room(self) -> int:
        """Bytes of `memory` that are not taken."""
        return int(self.memory - _bytes([bag for bags in self.kept for bag in bags]))


class _Walker(Interpreter):
    def steps(self, inputs: tuple) -> Iterator[tuple[fx.Node, object]]:
        self.env, self.args_iter = {}, iter(inputs)
        for node in self.graph.nodes:
            value = self.env[node] = self.run_node(node)
            yield node, value
            for spent in self.user_to_last_uses.get(node, []):
                del self.env[spent]


def walk(model: nn.Module, groups: Groups, images: Tensor | tuple) -> Iterator[tuple[fx.Node, object]]:
    """Runs `model` node by node on a copy of images (N, …), or of a tuple of several inputs, and yields each graph node
    with its value.

    Read a value before asking for the next: an in-place ReLU overwrites it. Several networks of one architecture can
    be walked in step with zip.
    """
    device = (images if isinstance(images, Tensor) else images[0]).device
    return _Walker(model, groups.graph).steps(on(images, device))
