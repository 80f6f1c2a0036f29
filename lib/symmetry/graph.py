"""The graph of a network: from torch.fx where that can follow it, else from torch.export."""

import contextlib
import copy
import inspect
import io
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import fx, nn

from ..checks import first_line
from .registry import spelled


class UnsupportedError(Exception):
    """A network cannot be traced; where an operation or a layout has no rule, the line names the node, its module and
    the kind of layer."""


class Graph(NamedTuple):
    """A graph whose nodes carry the shapes of their values on the example, and how it came about."""

    graph: fx.Graph
    way: str  # "torch.fx" or "torch.export"


class Meta(NamedTuple):
    """The shape of a tensor that a node computes."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Interpreter(fx.Interpreter):
    """Runs a graph on any network of the architecture; tensors that only the graph knows come from the graph."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)

    def run_node(self, node: fx.Node) -> object:
        return node.meta["constant"] if "constant" in node.meta else super().run_node(node)


class _Shapes(Interpreter):
    """Notes at each node the shapes of its tensors, or the number that it computes."""

    def run_node(self, node: fx.Node) -> object:
        value = super().run_node(node)
        if isinstance(value, torch.Tensor):
            node.meta["tensor_meta"] = Meta(tuple(value.shape), value.dtype)
        elif isinstance(value, tuple | list) and any(isinstance(each, torch.Tensor) for each in value):
            metas = [Meta(tuple(each.shape), each.dtype) if isinstance(each, torch.Tensor) else None for each in value]
            node.meta["tensor_meta"] = metas
        elif isinstance(value, int | float | tuple | list | slice | torch.dtype | torch.device):
            node.meta["number"] = value
        return value


# Of torch's own modules, those that are looked into: what they are made of has rules.
_LAYERED = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)
_LAYERED += (nn.TransformerDecoder, nn.TransformerDecoderLayer, nn.Transformer)


class _Symbolic(fx.Tracer):
    """torch.fx's tracer, for the first `count` arguments of `forward`: the others keep their defaults. Modules that
    have a rule are leaves."""

    proxy_buffer_attributes = True  # else what is made of buffers alone becomes a constant of this one network

    def __init__(self, count: int, has_rule: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.count, self.has_rule = count, has_rule

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return self.has_rule(module) or (not isinstance(module, _LAYERED) and super().is_leaf_module(module, name))

    def create_args_for_root(self, function: Callable, is_module: bool, concrete_args=None):
        names = [p.name for p in inspect.signature(function).parameters.values() if p.kind != p.VAR_POSITIONAL][1:]
        names = [*names, *(f"input_{i}" for i in range(self.count))][: self.count]
        return function, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]


def inputs_of(example: object) -> tuple:
    """The positional arguments that an example stands for."""
    return tuple(example) if isinstance(example, tuple | list) else (example,)


def on(example: object, device: torch.device | str) -> tuple:
    """Copies of the inputs on a device: a network may write into them."""
    return tuple(x.to(device, copy=True) if isinstance(x, torch.Tensor) else x for x in inputs_of(example))


def capture(
    model: nn.Module, example: object, has_rule: Callable[[nn.Module], bool], knows: Callable[[object], bool]
) -> Graph:
    """The graph of a network in evaluation mode, with the shapes of its values.

    Args:
        example: an input, or a tuple of several.
        has_rule: which modules are nodes of their own instead of being looked into.
        knows: which functions need not be looked into.

    Raises:
        UnsupportedError: the network does not take the example, or neither way can trace it.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    name = type(model).__name__
    with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):  # both tracers print stacks
        try:
            model(*on(example, device))
        except Exception as error:
            shapes = " and ".join(map(_described, inputs_of(example)))
            raise UnsupportedError(f"the example {shapes} does not go through {name}: {first_line(error)}") from None
        reasons, wrapped = {}, None
        for way, trace in (("torch.fx", _symbolic), ("torch.export", _exported)):
            try:
                with _written_out():
                    graph = _with_patterns(trace(model, on(example, device), has_rule))
                _Shapes(model, graph).run(*on(example, device))
                if any(node.op == "call_function" and not knows(node.target) for node in graph.nodes):
                    wrapped = wrapped or Graph(graph, way)  # by torch.fx.wrap; torch.export looks into it
                    continue
                return Graph(graph, way)
            except Exception as error:
                reasons[way] = first_line(error.__cause__ or error).rstrip(".")
    if wrapped is not None:
        return wrapped
    both = "; ".join(f"{way}: {reason}" for way, reason in reasons.items())
    raise UnsupportedError(f"cannot trace {name}: {both}")


@contextlib.contextmanager
def _written_out() -> Iterator[None]:
    """nn.MultiheadAttention as what it computes, not as one operation that does it faster."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def attention_pattern(query, key, mask=None, causal: bool = False, scale: float | None = None) -> torch.Tensor:
    """softmax(scale · q·kᵀ) of queries (…, L, E) and keys (…, S, E), which several heads of the queries may share:
    (…, L, S), as in `F.scaled_dot_product_attention`."""
    key = _repeated(key, query)
    weights = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        allowed = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device).tril()
        weights = weights.masked_fill(~allowed, -torch.inf)
    if mask is not None:
        weights = weights.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else weights + mask
    return weights.softmax(-1)


def attention_output(pattern, value) -> torch.Tensor:
    """pattern (…, L, S) · values (…, S, V), which several heads may share: (…, L, V)."""
    return pattern @ _repeated(value, pattern)


def _repeated(shared: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    repeats = heads.shape[-3] // shared.shape[-3] if heads.dim() > 3 else 1
    return shared.repeat_interleave(repeats, -3) if repeats > 1 else shared


def _with_patterns(graph: fx.Graph) -> fx.Graph:
    """The graph with attention in two steps, so that its pattern is a value of it."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    for node in list(graph.nodes):
        if node.op != "call_function" or spelled(node.target) != "scaled_dot_product_attention":
            continue
        given = {"attn_mask": None, "is_causal": False, "scale": None}
        given |= dict(zip(names, node.args, strict=False)) | node.kwargs
        with graph.inserting_before(node):
            asked = tuple(given[name] for name in ("query", "key", "attn_mask", "is_causal", "scale"))
            pattern = graph.call_function(attention_pattern, asked)
            output = graph.call_function(attention_output, (pattern, given["value"]))
        for new in (pattern, output):
            new.meta["nn_module_stack"] = node.meta.get("nn_module_stack")
        node.replace_all_uses_with(output)
        graph.erase_node(node)
    return graph


def _described(example: object) -> str:
    if not isinstance(example, torch.Tensor):
        return type(example).__name__
    return f"{tuple(example.shape)} {example.dtype}".replace("torch.", "")


def _symbolic(model: nn.Module, inputs: tuple, has_rule: Callable[[nn.Module], bool]) -> fx.Graph:
    root = copy.copy(model)  # it leaves constants on the module that it is given
    graph = _Symbolic(len(inputs), has_rule).trace(root)
    _note_constants(graph, model, root)
    return graph


def _note_constants(graph: fx.Graph, model: nn.Module, holder: nn.Module) -> None:
    """Keeps with the graph what a node reads from the traced module and the network itself does not have."""
    for node in graph.nodes:
        if node.op == "get_attr" and _attribute(model, node.target) is None:
            node.meta["constant"] = _attribute(holder, node.target)


def _attribute(module: nn.Module, path: str) -> object:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _exported(model: nn.Module, inputs: tuple, has_rule: Callable[[nn.Module], bool]) -> fx.Graph:
    """torch.export's graph, with an operation that a module with a rule stands for written as that module again."""
    dims = tuple({0: torch.export.Dim.AUTO} if isinstance(x, torch.Tensor) and x.dim() else None for x in inputs)
    try:
        program = torch.export.export(model, inputs, dynamic_shapes=dims, strict=False)
    except Exception:  # a network that takes one batch size only, or names its arguments in a way of its own
        program = torch.export.export(model, inputs, strict=False)
    holder = program.module(check_guards=False)
    graph = holder.graph
    graph.set_codegen(fx.graph.CodeGen())  # inputs and outputs one by one
    if program.call_spec.out_spec.is_leaf():
        output = graph.output_node()
        output.args = (output.args[0][0],)
    modules = dict(model.named_modules())
    for node in list(graph.nodes):
        if node.op == "call_module" and node.target not in modules:
            graph.erase_node(node)  # checks of the inputs
        elif node.op == "call_function" and (name := _standing_for(node, modules, has_rule)) is not None:
            with graph.inserting_before(node):
                module = graph.call_module(name, (node.args[0],))
            node.replace_all_uses_with(module)
            module.meta["nn_module_stack"] = node.meta.get("nn_module_stack")
            graph.erase_node(node)
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    _note_constants(graph, model, holder)
    return graph


def _standing_for(node: fx.Node, modules: dict[str, nn.Module], has_rule: Callable[[nn.Module], bool]) -> str | None:
    """The module of which a node is the whole computation."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    weights = [n.target for n in node.all_input_nodes[1:] if n.op == "get_attr"]
    if not stack or not weights or len(weights) != len(node.all_input_nodes) - 1:
        return None
    name = str(stack[-1][0]).partition("@")[0]  # a second call of a module has a number behind it
    module = modules.get(name)
    owners = {target.rpartition(".")[0] for target in weights}
    if (
        module is None
        or owners != {name}
        or not has_rule(module)
        or getattr(module, "padding_mode", "zeros") != "zeros"
    ):
        return None
    return name
