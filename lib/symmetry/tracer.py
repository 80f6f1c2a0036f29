"""The groups of a network, traced from its graph with one rule an operation."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import fx, nn

from ..checks import first_line, unwrapped
from .graph import Graph, UnsupportedError
from .graph import capture as graph_of
from .groups import KINDS, Gain, Group, Groups, Layer, Member, Tap, inside_name
from .registry import LINEAR, MAKERS, function_rule, kind_of_layer, known, module_rule, reads_numbers, spelled

# Labels (n, 4) say what stands in each of n entries of an axis: (unit, part, parts, sign) is one of the parts of a
# unit, so that the 49 entries of a flattened 7 × 7 channel are (unit, 0 … 48, 49). Entries of one unit move together.
# Where units take a linear map M, those of sign 1 move with M and those of sign −1 with its dual, the inverse of Mᵀ.
# A layout maps axes to labels; an axis that is absent keeps its order. A key of several axes (1, 2) has labels
# (n1, n2, 4): a reshape has split a permuted axis in two.
Labels = np.ndarray
Layout = dict[int | tuple[int, ...], Labels]
UNIT, PART, PARTS, SIGN = range(4)
COLUMNS = 4


class _Units:
    """The units met so far: a union-find in which a unit may turn out to be another, or a part of another."""

    def __init__(self) -> None:
        self.count = 0
        self.to = np.zeros((1024, COLUMNS), dtype=np.int64)  # what each unit is
        self.fixed = np.zeros(1024, dtype=bool)
        self.kind = np.zeros(1024, dtype=np.int8)  # which maps of KINDS, at most

    def new(self, count: int, fixed: bool = False) -> Labels:
        first, self.count = self.count, self.count + count
        while self.count > len(self.to):
            grown = (np.concatenate([x, np.zeros_like(x)]) for x in (self.to, self.fixed, self.kind))
            self.to, self.fixed, self.kind = grown
        here = slice(first, self.count)
        self.to[here] = 0
        self.to[here, UNIT] = np.arange(first, self.count)
        self.to[here, PARTS] = self.to[here, SIGN] = 1
        self.fixed[here] = fixed
        self.kind[here] = len(KINDS) - 1
        return self.to[here].copy()

    def resolve(self, labels: Labels) -> Labels:
        """The labels in units that are no parts of others."""
        while True:
            target = self.to[labels[..., UNIT]]
            if (target[..., UNIT] == labels[..., UNIT]).all():
                return labels
            parts = labels[..., PARTS]
            part = target[..., PART] * parts + labels[..., PART]
            columns = [target[..., UNIT], part, target[..., PARTS] * parts, target[..., SIGN] * labels[..., SIGN]]
            labels = np.stack(columns, axis=-1)

    def fix(self, labels: Labels) -> None:
        self.fixed[self.resolve(labels)[..., UNIT]] = True

    def limit(self, labels: Labels, kind: str) -> None:
        """Says that at most maps of a kind leave what is computed as it is."""
        unit = self.resolve(labels)[..., UNIT]
        np.minimum.at(self.kind, unit, KINDS.index(kind))

    def unify(self, a: Labels, b: Labels) -> None:
        """Ties two axes entry by entry."""
        a, b = self.resolve(a.reshape(-1, COLUMNS)), self.resolve(b.reshape(-1, COLUMNS))
        differ = (a[:, :SIGN] != b[:, :SIGN]).any(axis=1)
        if (crossed := ~differ & (a[:, SIGN] != b[:, SIGN])).any():  # it moves with M and with its dual: they are one
            self.limit(a[crossed], "orthogonal")
        a, b = a[differ], b[differ]
        if not len(a):
            return
        for new, old in ((b, a), (a, b)) if b[:, UNIT].max() > a[:, UNIT].max() else ((a, b), (b, a)):
            alone = (new[:, PARTS] == 1).all() and len(np.unique(new[:, UNIT])) == len(new)
            if alone and not np.isin(new[:, UNIT], old[:, UNIT]).any():
                self.to[new[:, UNIT]] = old
                self.to[new[:, UNIT], SIGN] *= new[:, SIGN]
                np.logical_or.at(self.fixed, old[:, UNIT], self.fixed[new[:, UNIT]])
                np.minimum.at(self.kind, old[:, UNIT], self.kind[new[:, UNIT]])
                return
        for x, y in zip(a, b, strict=True):
            (p, s, n, e), (q, t, m, f) = sorted(
                map(tuple, self.resolve(np.stack([x, y])).tolist()), key=lambda u: (u[2], -u[0])
            )
            if p == q and (s, n) == (t, m):
                if e != f:
                    self.kind[p] = min(self.kind[p], KINDS.index("orthogonal"))
                continue
            if p != q and m % n == 0 and t % n == s:  # p's n parts are n of q's m
                self.to[p] = q, t // n, m // n, e * f
                self.fixed[q] |= self.fixed[p]
                self.kind[q] = min(self.kind[p], self.kind[q])
            else:  # no permutation but the identity is known to respect both; it always does
                self.fixed[[p, q]] = True


# What leaves the entries of an axis as they are, one by one, or takes their mean over other axes.
PASSING = {
    "dropout", "contiguous", "clone", "detach", "float", "double", "to", "alias", "view", "reshape", "flatten",
    "unflatten", "_unsafe_view", "permute", "transpose", "movedim", "getitem", "select", "slice", "narrow", "chunk",
    "split", "split_with_sizes", "unbind", "squeeze", "unsqueeze", "mean", "roll", "expand",
    "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
}  # fmt: skip
PASSING_MODULES = (nn.Identity, nn.Dropout, nn.Flatten, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)


class _Tracer:
    def __init__(self, model: nn.Module, graph: Graph, *, inside: bool = False) -> None:
        """`inside`: heads of attention stay in their order, and what runs inside them is labelled; else heads are."""
        self.graph, self.inside = graph.graph, inside
        self.modules = dict(model.named_modules())
        self.state = {name: t for name, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
        # What is left of a table (a mask) when the example is shorter moves nothing; statistics come with parameters.
        self.parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self.aliases, self.shared = aliases(model), shared(model)
        self.units = _Units()
        self.layouts: dict[fx.Node, Layout | list[Layout]] = {}
        self.tensors: dict[str, Layout] = {}
        self.rows: dict[tuple[str, int], list[tuple[tuple[int, int], Labels]]] = {}
        self.apart: list[Labels] = []
        self.producers: list[tuple[str, Labels]] = []
        self.kinds: dict[fx.Node, str] = {}
        self.layers: list[Layer] = []
        self.gains: dict[str, tuple[str | None, list[fx.Node]]] = {}  # a norm's gain: its bias, and its nodes
        self.roles: list[tuple[str, Labels]] = []  # what runs inside heads: "qk" or "vo", and its units
        self.nested = False  # whether an axis was split into heads and what is inside them
        self.visited: fx.Node | None = None

    # What rules use -------------------------------------------------------------------------------------------------

    def fail(self, node: fx.Node, reason: str) -> UnsupportedError:
        if node.op == "call_module":
            where = f" (module '{node.target}', {type(self.modules[node.target]).__name__})"
        else:
            stack = [(str(p), k) for p, k in (node.meta.get("nn_module_stack") or {}).values()]
            path, kind = stack[-1] if stack else ("", "")
            kind = getattr(kind, "__name__", str(kind).rpartition(".")[2])
            where = f" (in module '{path}', {kind})" if path else ""
        return UnsupportedError(f"node '{node.name}'{where}, {node.op} {spelled(node.target)}: {reason}")

    def layout(self, node: fx.Node, *, split: bool = False) -> Layout:
        """The layout of a node's value, to be changed at will; `split` says that the rule can read an axis that a
        reshape has split."""
        layout = self._read(node)
        if isinstance(layout, list):
            raise self.fail(self.visited, f"'{node.name}' is several tensors, and its rule reads one")
        if not split and any(isinstance(axis, tuple) for axis in layout):
            split_by = "a permuted axis that a reshape has split, as attention does for its heads, goes in"
            raise self.fail(self.visited, f"{split_by}, and its rule does not read that")
        return dict(layout)

    def _read(self, node: fx.Node) -> Layout | list[Layout]:
        if node.op == "get_attr" and node.target in self.state:
            return self.tensor(node, node.target) or {}
        return self.layouts[node]

    def items(self, node: fx.Node) -> list[Layout]:
        """The layouts of the tensors in a node's value."""
        return [dict(each) for each in _list(self._read(node))]

    def value(self, argument: object) -> object:
        """An argument with the numbers that other nodes computed on the example in their place."""
        return fx.map_arg(argument, lambda node: node.meta.get("number", node))

    def new(self, size: int, fixed: bool = False) -> Labels | None:
        """Labels of `size` new units; None for a single entry, which has nothing to be permuted with."""
        return self.units.new(size, fixed) if size > 1 else None

    def tensor(self, node: fx.Node, name: str) -> Layout | None:
        """The layout of a parameter or buffer, new units on each axis at its first use; None if there is none."""
        name = self.aliases.get(name, name)
        if name not in self.state:
            owner, _, last = name.rpartition(".")
            if isinstance(getattr(self.modules.get(owner), last, None), torch.Tensor):
                raise self.fail(
                    node,
                    f"its {last} is made from other tensors (weight_norm, spectral_norm, pruning); "
                    "accepted: a plain one, as remove_parametrizations and prune.remove leave it",
                )
            return None
        if name not in self.tensors:
            sizes = enumerate(self.state[name].shape)
            self.tensors[name] = {axis: self.units.new(size) for axis, size in sizes if size > 1}
        return self.tensors[name]

    def piece(self, node: fx.Node, name: str, axis: int, rows: tuple[int, int], labels: Labels | None) -> Labels | None:
        """Says that `labels` (None: new units) lie along an axis of some rows of a tensor alone, as in a grouped
        convolution; returns them."""
        name = self.aliases.get(name, name)
        self.tensor(node, name).pop(axis, None)
        known = self.rows.setdefault((name, axis), [])
        for limits, other in known:
            if limits == rows:
                self.unify(node, other, labels) if labels is not None else None
                return other
        if labels is None:
            labels = self.new(self.state[name].shape[axis])
        if labels is not None:
            known.append((rows, labels))
        return labels

    def alike(self, constant: object) -> Layout:
        """The layout of a tensor outside the state dict: new units along axes on which its entries are alike."""
        if not isinstance(constant, torch.Tensor):
            return {}
        wide = [axis for axis, size in enumerate(constant.shape) if size > 1]
        same = [axis for axis in wide if bool((constant == constant.narrow(axis, 0, 1)).all())]
        return {axis: self.units.new(constant.shape[axis]) for axis in same}

    def tie(self, node: fx.Node, tensors: Sequence[Layout | None], axis: int, labels: Labels | None) -> None:
        """Says that `labels` lie along an axis of each of some tensors, where those exist."""
        for tensor in tensors:
            if tensor is not None:
                self.unify(node, tensor.get(axis), labels)

    def fix(self, labels: Labels | None) -> None:
        if labels is not None:
            self.units.fix(labels)

    def limit(self, layout: Layout | Labels | None, kind: str = "permutation") -> None:
        """Says that only maps of a kind (`KINDS`) may act on what carries these labels."""
        for labels in layout.values() if isinstance(layout, dict) else [layout]:
            if labels is not None:
                self.units.limit(labels, kind)

    def unify(self, node: fx.Node, first: Labels | None, second: Labels | None, *, dual: bool = False) -> None:
        """Ties two axes of one length entry by entry; None is an axis that keeps its order. `dual`: the entries are
        multiplied and summed over, so one moves with the dual of the map that moves the other."""
        if dual and second is not None:
            second = second * np.array([1, 1, 1, -1])
        if first is None or second is None:
            self.fix(first)
            self.fix(second)
        elif first.shape != second.shape:
            raise self.fail(node, f"axes of {len(first)} and {len(second)} entries meet")
        else:
            self.units.unify(first, second)

    # The walk -------------------------------------------------------------------------------------------------------

    def run(self) -> Groups:
        for node in self.graph.nodes:
            self.visited = node
            self.layouts[node] = self.visit(node)
        return self.collect()

    def visit(self, node: fx.Node) -> Layout | list[Layout]:
        if node.op == "placeholder":
            return {}
        if node.op == "get_attr":
            return self.alike(node.meta.get("constant"))
        if node.op == "output":
            for source in node.all_input_nodes:
                for layout in self.items(source):
                    for labels in layout.values():
                        self.fix(labels)
            return {}
        module = self.modules[node.target] if node.op == "call_module" else None
        handler = module_rule(module) if module is not None else function_rule(node.target)
        bare = spelled(node.target) not in MAKERS if module is None else not module.state_dict()
        if bare and not any(map(self._labelled, node.all_input_nodes)):
            return {}  # nothing that can be permuted goes in
        if module is None and handler is None and not _is_tensor(node):
            if any(map(_is_tensor, node.all_input_nodes)) and not reads_numbers(node.target):
                raise self.fail(node, "it has no rule")
            return {}
        if handler is None:
            raise self.fail(node, f"{kind_of_layer(node, module)}it has no rule; symmetry.rule registers one")
        if not node.args and node.all_input_nodes:
            raise self.fail(node, "its input is given by keyword")
        try:
            layout = handler(self, node, module)
        except UnsupportedError:
            raise
        except Exception as error:
            raise self.fail(node, f"its rule cannot read it: {first_line(error)}") from error
        if handler not in LINEAR:
            for each in [*(i for n in node.all_input_nodes for i in self.items(n)), *_list(layout)]:
                self.limit(each)
        if module is not None:
            for name, tensor in module.state_dict(keep_vars=True).items():
                full = self.aliases.get(f"{node.target}.{name}", f"{node.target}.{name}")
                if isinstance(tensor, torch.Tensor) and tensor.numel() > 1 and full not in self.tensors:
                    raise self.fail(node, f"its rule says nothing of its {name}")
        return layout

    def _labelled(self, node: fx.Node) -> bool:
        if node.op == "get_attr":
            return node.target in self.state and self.state[node.target].numel() > 1
        return any(_list(self.layouts[node]))

    # The groups -----------------------------------------------------------------------------------------------------

    def _places(self) -> Iterable[tuple[str, int, tuple[int, int] | None, Labels]]:
        """(tensor, axis, rows, labels) of every tensor that was used, in the order of use."""
        for tensor, layout in self.tensors.items():
            for axis in range(self.state[tensor].dim()):
                if axis in layout:
                    yield tensor, axis, None, layout[axis]
                for rows, labels in self.rows.get((tensor, axis), ()):
                    yield tensor, axis, rows, labels

    def _classes(self) -> np.ndarray:
        """A number for each unit: equal for those that may be exchanged, −1 for those that may not be moved.

        Two units may be exchanged if they show on the same axes, with the same parts in the same order: an operation
        that treats every unit of an axis alike does not tell them apart.
        """
        generator = np.random.default_rng(0)
        known = np.zeros(self.units.count, dtype=np.uint64)
        layouts = [each for layout in self.layouts.values() for each in _list(layout)]
        axes = [labels for layout in layouts for labels in layout.values()]
        axes += [labels for *_, labels in self._places()] + self.apart
        for labels in {id(labels): labels for labels in axes}.values():
            unit, part, parts, _ = self.units.resolve(labels.reshape(-1, COLUMNS)).T
            order = np.argsort(unit, kind="stable")
            starts = np.r_[True, unit[order][1:] != unit[order][:-1]]
            first = np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))
            occurrence = np.empty_like(order)
            occurrence[order] = np.arange(len(order)) - first
            salt = generator.integers(1, 2**63, dtype=np.uint64)
            code = _mixed(
                _mixed(_mixed(part, salt) + parts.astype(np.uint64), salt) + occurrence.astype(np.uint64), salt
            )
            np.add.at(known, unit, code)
        classes = np.unique(known, return_inverse=True)[1]
        classes[self.units.fixed[: self.units.count]] = -1
        return classes

    def _rows(self, layout: Layout) -> Iterable[tuple[int, tuple[int, int] | None, Labels]]:
        """(axis, (another axis, its entry) or None, labels) of a layout; of an axis that was split, entry by entry."""
        for axis, labels in layout.items():
            if not isinstance(axis, tuple):
                yield axis, None, labels
            elif len(axis) == 2:
                for entry, row in enumerate(labels):
                    yield axis[1], (axis[0], entry), row

    def _foldable(self, classes: np.ndarray, kinds: np.ndarray) -> dict[int, list[Gain]]:
        """{class: the gains that have to be folded before its units can be mapped}; where one cannot be folded, the
        class is left with permutations, in `kinds`."""
        gains: dict[int, list[Gain]] = {}
        for name, (bias, nodes) in self.gains.items():
            labels = self.tensors[name].get(0)
            if labels is None:
                continue
            unit = self.units.resolve(labels)[:, UNIT]
            own = {c for c in classes[unit].tolist() if c >= 0 and kinds[c]}
            readers = self._readers(nodes, unit) if own else None
            for unit_class in own:
                if readers is None or name in self.shared:
                    kinds[unit_class] = 0
                else:
                    gains.setdefault(unit_class, []).append(Gain(name, bias, readers))
        return gains

    def _readers(self, norms: list[fx.Node], unit: np.ndarray) -> tuple[tuple[str, str | None], ...] | None:
        """(weight, bias) of the linear layers that alone read a norm's output, whose units are given; None where
        something else does."""
        found: dict[str, str | None] = {}
        waiting = list(norms)
        while waiting:
            node = waiting.pop()
            for user in node.users:
                if user.op != "output" and (not _is_tensor(user) or spelled(user.target) in MAKERS):
                    continue  # it reads a shape alone
                name, module = spelled(user.target), self.modules.get(user.target) if user.op == "call_module" else None
                linear = isinstance(module, nn.Linear) or (module is None and name == "linear")
                if linear and user.args[0] is node:
                    arguments = [*user.args[1:], *user.kwargs.values()]
                    names = [a.target for a in arguments if isinstance(a, fx.Node)]
                    names = names if module is None else [f"{user.target}.{n}" for n in ("weight", "bias")]
                    weight, bias = names[0], names[1] if len(names) > 1 and names[1] in self.state else None
                    axis = self.tensors.get(weight, {}).get(1)
                    if weight in found or {weight, bias} & self.shared or axis is None:
                        return None
                    if not np.array_equal(self.units.resolve(axis)[:, UNIT], unit):
                        return None
                    found[weight] = bias
                elif user.op == "output":
                    return None
                elif name in PASSING or isinstance(module, PASSING_MODULES) or _unpadded(user, node):
                    waiting.append(user)
                else:
                    return None
        uses = [n.target for n in self.graph.nodes if n.op in ("call_module", "get_attr")]
        once = all(uses.count(name) + uses.count(name.rpartition(".")[0]) == 1 for name in found)
        return tuple(found.items()) if once else None

    def collect(self) -> Groups:
        classes = self._classes()
        rank = np.full(self.units.count, -1)
        sizes: dict[int, int] = {}
        members: dict[int, list[Member]] = {}
        names: dict[str, list[str]] = {}
        for alias, name in self.aliases.items():
            names.setdefault(name, []).append(alias)
        sign = np.zeros(self.units.count, dtype=np.int64)  # of each unit where it is first met
        kinds = np.full(classes.max(initial=-1) + 1, len(KINDS) - 1)
        roots = np.arange(self.units.count)
        roots = roots[self.units.to[roots, UNIT] == roots]
        roots = roots[classes[roots] >= 0]
        np.minimum.at(kinds, classes[roots], self.units.kind[roots])
        for tensor, axis, rows, labels in self._places():
            resolved = self.units.resolve(labels)
            unit, signs = resolved[:, UNIT], resolved[:, SIGN]
            for unit_class in dict.fromkeys(classes[unit].tolist()):
                if unit_class < 0:
                    continue
                positions = np.flatnonzero(classes[unit] == unit_class)
                if unit_class not in sizes:  # its first place says how its units are counted
                    ordered = unit[positions][np.sort(np.unique(unit[positions], return_index=True)[1])]
                    rank[ordered], sizes[unit_class] = np.arange(len(ordered)), len(ordered)
                    sign[unit[positions[::-1]]] = signs[positions[::-1]]
                turned = signs * sign[unit]  # −1 where an entry moves with the dual
                for *run, columns in _runs(positions, rank[unit[positions]], sizes[unit_class], turned):
                    if (turned[columns] != turned[columns[:1]]).any():
                        kinds[unit_class] = min(kinds[unit_class], KINDS.index("orthogonal"))
                    dual = bool(turned[columns[0, 0]] < 0)
                    every = [Member(n, axis, *run[:2], rows, run[2], dual) for n in (tensor, *names.get(tensor, ()))]
                    members.setdefault(unit_class, []).extend(every)
        taps: dict[int, list[Tap]] = {}
        for node, kind in self.kinds.items():
            for axis, at, labels in self._rows(self.layouts[node]):
                unit = self.units.resolve(labels)[:, UNIT]
                for unit_class in dict.fromkeys(classes[unit].tolist()):
                    if sizes.get(unit_class, 0) > 1:
                        positions = np.flatnonzero(classes[unit] == unit_class)
                        runs = _runs(positions, rank[unit[positions]], sizes[unit_class])
                        every = [Tap(node.name, kind, axis, *run[:3], at) for run in runs]
                        taps.setdefault(unit_class, []).extend(every)
        # What reads a stream reads it through its norms; sums that they normalise show the same again, on any scale.
        normed = {node.name for _, nodes in self.gains.values() for node in nodes}
        for unit_class, each in taps.items():
            if any(tap.node in normed for tap in each):
                taps[unit_class] = [tap for tap in each if tap.kind != "post_norm" or tap.node in normed]
        makers: dict[int, list[str]] = {}
        order: dict[int, int] = {}
        # A layer whose outputs are all one group names it better than one whose outputs are split over several.
        made = [
            (name, np.unique(classes[self.units.resolve(labels)[:, UNIT]]).tolist()) for name, labels in self.producers
        ]
        for position, (_, made_classes) in enumerate(made):
            for unit_class in made_classes:
                order.setdefault(unit_class, position)
        for name, made_classes in sorted(made, key=lambda producer: len(producer[1]) > 1):
            for unit_class in made_classes:
                makers.setdefault(unit_class, []).append(name)
        free = [c for c, size in sizes.items() if size > 1 and any(m.tensor in self.parameters for m in members[c])]
        free.sort(key=lambda unit_class: order.get(unit_class, len(made)))
        titles = _names([makers.get(unit_class) or [members[unit_class][0].tensor] for unit_class in free])
        gains = self._foldable(classes, kinds)
        roles = {
            int(c): role for role, labels in self.roles for c in classes[self.units.resolve(labels)[..., UNIT]].flat
        }
        groups = {
            title: Group(
                sizes[unit_class],
                tuple(members[unit_class]),
                tuple(taps.get(unit_class, ())),
                KINDS[kinds[unit_class]],
                tuple(gains.get(unit_class, ())) if kinds[unit_class] else (),
                role=roles.get(unit_class),
            )
            for title, unit_class in zip(titles, free, strict=True)
        }
        reached = {*self.tensors, *(node.target for node in self.graph.nodes if node.op == "get_attr")}
        unreached = tuple(
            name
            for name, tensor in self.state.items()
            if self.aliases.get(name, name) not in reached and tensor.numel() > 1
        )
        return Groups(groups, tuple(self.layers), self.graph, unreached=unreached)


def _mixed(values: np.ndarray, salt: np.uint64) -> np.ndarray:
    """Values hashed to 64 bits (the finaliser of SplitMix64)."""
    z = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + salt
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _runs(
    positions: np.ndarray, rank: np.ndarray, size: int, turned: np.ndarray | None = None
) -> list[tuple[int, int, tuple[int, ...] | None, np.ndarray]]:
    """The entries of an axis that belong to a group, as (block, offset, starts) of `Member` and the entries (size,
    block); those that are `turned` (N,) apart from the others."""
    table = positions[np.lexsort((positions, rank))].reshape(size, -1)
    apart = (np.diff(table, axis=1) != 1).any(axis=0)
    if turned is not None:
        apart |= (np.diff(turned[table], axis=1) != 0).any(axis=0)
    runs = []
    for columns in np.split(np.arange(table.shape[1]), np.flatnonzero(apart) + 1):
        first, block = table[:, columns[0]], len(columns)
        regular = (first == first[0] + block * np.arange(size)).all()
        runs.append((block, int(first.min()), None if regular else tuple(first.tolist()), table[:, columns]))
    return runs


def _names(producers: Sequence[list[str]]) -> list[str]:
    """A readable name for each group: the layer that makes it, or for tied layers the stage most of them share."""
    names = []
    for makers in producers:
        tops = [maker.split(".")[0] for maker in makers]
        top = max(tops, key=tops.count)
        names.append(makers[0] if len(makers) == 1 or tops.count(top) == 1 else top)
    # A stage that names several groups, or a group's own layer, says nothing: use the first layer.
    names = [name if names.count(name) == 1 else makers[0] for name, makers in zip(names, producers, strict=True)]
    return [
        f"{name}[{names[:position].count(name)}]" if names.count(name) > 1 else name
        for position, name in enumerate(names)
    ]


def aliases(model: nn.Module) -> dict[str, str]:
    """{name in the state dict: the first name there of the same tensor}, where they differ."""
    first: dict[int, str] = {}
    names = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and first.setdefault(id(tensor), name) != name:
            names[name] = first[id(tensor)]
    return names


def shared(model: nn.Module) -> set[str]:
    """The names in the state dict of tensors that have several names there: a head tied to the embedding, say."""
    names = aliases(model)
    return {*names, *names.values()}


def _unpadded(node: fx.Node, source: fx.Node) -> bool:
    """Whether a node pads its input, by nothing."""
    return spelled(node.target) in ("pad", "constant_pad_nd") and _shape(node) == _shape(source)


def _list(layout: Layout | list[Layout]) -> list[Layout]:
    return layout if isinstance(layout, list) else [layout]


def _is_tensor(node: fx.Node) -> bool:
    return "tensor_meta" in node.meta


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def capture(model: nn.Module, example: torch.Tensor | tuple, leaves: tuple[type, ...] = ()) -> fx.Graph:
    """The graph of a network in evaluation mode as `trace` reads it, with modules of the classes `leaves` as nodes of
    their own, too.

    Raises:
        UnsupportedError: as `trace`.
    """
    return graph_of(model, example, lambda m: isinstance(m, leaves) or module_rule(m) is not None, known).graph


def trace(model: nn.Module, example: torch.Tensor | tuple) -> Groups:
    """Finds every permutation group of a network from its graph.

    The graph is torch.fx's; where that cannot follow the network (control flow that depends on shapes, iteration over
    tensors), torch.export's of the same network: `Groups.way` says which. Arguments of `forward` that have defaults
    keep them.

    Args:
        model: any network; it is not changed. DataParallel and torch.compile wrappers are looked through.
        example: a batch of inputs (N, …), N ≥ 2, that it takes, or a tuple of several inputs; it is not changed.

    Returns:
        The groups, units of hidden layers that can be reordered without changing an output. Inputs and outputs keep
        their order, and so does what meets a tensor that is not in the state dict. Prove them (`prove`) before
        relying on them.

    Raises:
        UnsupportedError: an operation or a layout has no rule (the line names the node and its module), neither
            torch.fx nor torch.export can trace the network, or it does not take the example.
    """
    model = unwrapped(model)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        graph = graph_of(model, example, lambda module: module_rule(module) is not None, known)
    finally:
        for module, mode in training.items():
            module.training = mode
    tracer = _Tracer(model, graph)
    groups = tracer.run()
    if tracer.nested:
        within = _Tracer(model, graph, inside=True).run()
        groups = _with_inside(groups, within)
    return dataclasses.replace(groups, example=example, way=graph.way)


def _with_inside(groups: Groups, traced: Groups) -> Groups:
    """The groups of heads and of all else, with what runs inside the heads as it was traced with heads in order."""
    inside: dict[str, list[Group]] = {}
    for group in traced.values():
        heads = next((at for member in group.members if (at := _head_of(groups, member)) is not None), None)
        if heads is not None and group.role is not None:
            inside.setdefault(heads[0], []).append(dataclasses.replace(group, within=heads))
    outer = {}
    for name, group in groups.items():
        patterns = tuple(tap for tap in group.taps if tap.kind == "pattern")
        outer[name] = dataclasses.replace(group, taps=patterns) if name in inside and patterns else group
    order = {name: sorted(each, key=lambda g: (g.role, g.within[1])) for name, each in inside.items()}
    named = {inside_name(group): group for name in groups if name in order for group in order[name]}
    return dataclasses.replace(groups, groups=outer, inside=named)


def _head_of(groups: Groups, inner: Member) -> tuple[str, int] | None:
    """The group and number of the head that a member lies in; None if it lies in none."""
    first = inner.starts[0] if inner.starts is not None else inner.offset
    for name, group in groups.items():
        for member in group.members:
            if (member.tensor, member.axis) == (inner.tensor, inner.axis) and member.block > 1:
                starts = member.starts or range(member.offset, member.offset + group.size * member.block, member.block)
                for unit, start in enumerate(starts):
                    if start <= first < start + member.block:
                        return name, unit
    return None
