"""The quadratic assignment problem between two networks, and its operators without the matrix.

Units are nodes, weights are edges. The objective counts every edge once and every node once; `solvers`
maximises it. Nothing here builds the affinity matrix, except `Problem.affinity` for tests and teaching.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..checks import InputError, check_choice
from ..progress import tqdm
from ..symmetry import Member, by_tensor, entries
from .kernels import TILE, WORTH_SHARING, Workers, _accumulate, _blocks, _distance_factors, _pair

GIB = 1024**3
KERNELS = ("exp", "inner")


def check_dense(n: int, memory: float, way_out: str) -> None:
    """Raises InputError when a dense affinity matrix over n units, 4 n^4 bytes, exceeds `memory` bytes."""
    if 4 * n**4 > memory:
        need, limit = (tqdm.format_sizeof(count, "B") for count in (4 * n**4, memory))
        raise InputError(
            f"a dense affinity matrix over {n} units would take {need}, above the limit of {limit}; "
            f"use {way_out}, which never build it"
        )


@dataclass(frozen=True)
class Edge:
    """The weights between two sets of units. a, b: float32 (d, n_row, n_col), of networks A and B, where d
    counts the weights of one edge. row, col: names of the groups that permute the units, None for units that
    stand fixed.
    """

    tensor: str
    row: str | None
    col: str | None
    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class Node:
    """One number a unit: a, b float32 (n,), of networks A and B (a bias, a BatchNorm's scale or shift)."""

    tensor: str
    group: str
    a: Tensor
    b: Tensor


class Problem:
    """Two networks' weights as a quadratic assignment problem (Liu et al., ICML 2022), two-sided and
    matrix-free.

    For permutations pi, one a group, moving B (unit pi[a] of B takes place a of A), the objective is

        F(pi) = sum over edges, b, a of k(w1[b, a], w2[pi(b), pi(a)])
              + sum over nodes, a of k(v1[a], v2[pi(a)])

    with k the exact kernel exp(-||x - y||_2) of the published method, or the inner product <x, y> (Ainsworth
    et al., ICLR 2023). Edges are all tensors with a grouped axis; an axis that no group permutes is matched
    to itself. Nodes are biases and normalisation parameters. A BatchNorm that directly follows a layer is
    folded first: the weight is multiplied by gamma / sqrt(var + eps), the bias becomes beta + (bias - mean)
    gamma / sqrt(var + eps).

    state_a, state_b: state dicts with the same keys and shapes. groups: {name: Group}, from `symmetry.trace`.
    norms: {layer: BatchNorm that directly follows it} by module name; default `groups.norms`. fold=False
    leaves normalisations as nodes of their own (scale and shift, without running statistics).
    similarity: optional {name: (n, n)} float, e.g. correlations of activations, added to the node terms. Its
    spread is scaled to `similarity_weight` times the spread of the edges' gradient at the identity, for each
    kernel alike, so that 1.0 weighs them equally.
    memory: bytes for work space, beside one float32 copy of both networks' weights. threads: default torch's
    number.
    """

    def __init__(
        self,
        state_a: Mapping[str, Tensor],
        state_b: Mapping[str, Tensor],
        groups: Mapping,
        *,
        norms: Mapping[str, str] | None = None,
        eps: float | Mapping[str, float] = 1e-5,
        fold: bool = True,
        similarity: Mapping[str, Tensor] | None = None,
        similarity_weight: float = 1.0,
        device: torch.device | str = "cpu",
        memory: float = GIB,
        threads: int | None = None,
    ):
        self.device = torch.device(device)
        self.memory = memory
        self.workers = Workers(self.device, threads)
        self.sizes = {name: group.size for name, group in groups.items()}
        state_a, state_b, members = _side_by_side(state_a, state_b, by_tensor(groups), self.sizes)
        norms = getattr(groups, "norms", {}) if norms is None else norms
        # Detached and in float32 where they are used; the folded copies are the only ones held here.
        a, members_folded = _without_norms(state_a, members, norms, eps, fold)
        b, _ = _without_norms(state_b, members, norms, eps, fold)
        self.edges: list[Edge] = []
        self.nodes: list[Node] = []
        for tensor, owners in members_folded.items():
            for row, col, x, y in _pieces(tensor, owners, self.sizes, a[tensor], b[tensor]):
                if col is None and x.dim() == 1:
                    self.nodes.append(Node(tensor, row, x.to(self.device), y.to(self.device)))
                else:
                    self.edges.append(Edge(tensor, row, col, x.to(self.device), y.to(self.device)))
        self._index()
        self.similarity = {}
        for name, S in (similarity or {}).items():
            n = self.sizes.get(name)
            if n is None or tuple(S.shape) != (n, n):
                raise InputError(
                    f"similarity of {name!r} has shape {tuple(S.shape)}; accepted: (n, n) for groups {self.sizes}"
                )
            S = S.detach().to(self.device, torch.float64)
            self.similarity[name] = S - S.mean()
        self.similarity_weight = similarity_weight

    def _index(self) -> None:
        """Which edges touch which group; what was computed of others is forgotten."""
        self._values: dict[int, Tensor] = {}
        self._linear: dict[str, dict[str, Tensor]] = {}
        self._scales: dict[str, dict[str, float]] = {}
        self._touching: dict[str, list[tuple[int, str, str]]] = {name: [] for name in self.sizes}
        for index, edge in enumerate(self.edges):
            if edge.row is not None and edge.col is not None:
                self._touching[edge.row].append((index, "row", edge.col))
                self._touching[edge.col].append((index, "col", edge.row))

    def towards(self, others: Sequence[Sequence[Tensor]]) -> "Problem":
        """The same network B against others in place of A, each given by its weights, of the edges and then of the
        nodes, in this problem's order and shapes: the objective is the sum over them."""
        problem, count = copy.copy(self), len(self.edges)
        problem.edges = [replace(e, a=a) for each in others for e, a in zip(self.edges, each[:count], strict=True)]
        problem.nodes = [replace(v, a=a) for each in others for v, a in zip(self.nodes, each[count:], strict=True)]
        problem._index()
        return problem

    # -- what it consists of

    def identity(self) -> dict[str, Tensor]:
        """The permutations that move nothing: LongTensor (n,) a group."""
        return {name: torch.arange(size) for name, size in self.sizes.items()}

    def flat(self) -> dict[str, Tensor]:
        """The barycentre of all permutations: float32 (n, n) a group, every entry 1/n."""
        return {name: torch.full((n, n), 1 / n, device=self.device) for name, n in self.sizes.items()}

    def neighbours(self, name: str) -> set[str]:
        """The groups whose permutations enter the gradient of group `name`; itself, where an edge loops."""
        return {other for _, _, other in self._touching[name]}

    # -- values

    def objective(self, perms: Mapping[str, Tensor], kernel: str = "exp") -> float:
        """F(perms), exact, accumulated in float64. O(n^2 d) time."""
        check_choice("kernel", kernel, KERNELS)
        perms, total = {name: perm.to(self.device) for name, perm in perms.items()}, 0.0
        with self.workers.session():
            for edge in self.edges:
                step = max(1, 16 * TILE // edge.a[:, :1].numel())
                for start in range(0, edge.a.shape[1], step):
                    rows = slice(start, start + step)
                    b = edge.b[:, rows] if edge.row is None else edge.b.index_select(1, perms[edge.row][rows])
                    if edge.col is not None:
                        b = b.index_select(2, perms[edge.col])
                    total += _pair(edge.a[:, rows], b, kernel).sum(dtype=torch.float64).item()
            for node in self.nodes:
                value = _pair(node.a[None], node.b[perms[node.group]][None], kernel)
                total += value.sum(dtype=torch.float64).item()
            for name, S in self._scaled_similarity(kernel).items():
                total += S.gather(1, perms[name][:, None]).sum().item()
        return total

    def linear(self, kernel: str = "exp") -> dict[str, Tensor]:
        """The part of the gradient that depends on no permutation: node terms, similarity, edges to fixed
        units. float64 (n, n) a group, [a, a'] with a of A. Computed once.
        """
        if kernel not in self._linear:
            terms = self._fixed_terms(kernel)
            for name, S in self._scaled_similarity(kernel).items():
                terms[name] += S
            self._linear[kernel] = terms
        return self._linear[kernel]

    def _fixed_terms(self, kernel: str) -> dict[str, Tensor]:
        check_choice("kernel", kernel, KERNELS)
        terms = {n: torch.zeros(s, s, dtype=torch.float64, device=self.device) for n, s in self.sizes.items()}
        for node in self.nodes:
            terms[node.group] += _pair(node.a[None, :, None], node.b[None, None, :], kernel)
        for edge in self.edges:
            if edge.row is None or edge.col is None:
                side = "col" if edge.row is None else "row"
                terms[edge.col or edge.row] += self._at_vertex(edge, side, None, kernel)
        return terms

    def _scaled_similarity(self, kernel: str) -> dict[str, Tensor]:
        if not self.similarity:
            return {}
        if kernel not in self._scales:
            identity = self.identity()
            fixed, self._scales[kernel] = self._fixed_terms(kernel), {}
            for name, S in self.similarity.items():
                spread = (fixed[name] + self.quadratic(name, identity, kernel)).std().item()
                self._scales[kernel][name] = self.similarity_weight * spread / max(S.std().item(), 1e-30)
        return {name: S * self._scales[kernel][name] for name, S in self.similarity.items()}

    # -- gradients at permutations: exact kernel in O(n^3 d) time and O(n^2) memory

    def gradient(
        self,
        name: str,
        perms: Mapping[str, Tensor],
        kernel: str = "exp",
        cache: "Cache | None" = None,
    ) -> Tensor:
        """The gradient of F for one group at permutations of the others: float64 (n, n), [a, a'] with a of A. What
        joins it to groups that `perms` does not name is left out.

        Without edges from a group to itself, the assignment that maximises it maximises F over this group.
        """
        return self.linear(kernel)[name] + self.quadratic(name, perms, kernel, cache)

    def quadratic(
        self, name: str, perms: Mapping[str, Tensor], kernel: str = "exp", cache: "Cache | None" = None
    ) -> Tensor:
        """`gradient` without its `linear` part: float64 (n, n)."""
        total = torch.zeros(self.sizes[name], self.sizes[name], dtype=torch.float64, device=self.device)
        for index, side, other in self._touching[name]:
            if other not in perms:
                continue
            if cache is None:
                total += self._at_vertex(self.edges[index], side, perms[other].to(self.device), kernel)
            else:
                total += cache.get(index, side, perms[other])
        return total

    def _at_vertex(
        self, edge: Edge, side: str, perm: Tensor | None, kernel: str, units: Tensor | None = None
    ) -> Tensor:
        """Sum over the units of an edge's other side (or over `units` of them, in A's order), matched by
        `perm`, of the kernel between all pairs on `side`. float64 (n, n).
        """
        # (d, n_row, n_col) -> (matched, own side, d)
        order = (1, 2, 0) if side == "col" else (2, 1, 0)
        a, b = edge.a.permute(order), edge.b.permute(order)
        index = perm if units is None or perm is None else perm[units]
        if kernel == "inner":
            if units is not None:
                a = a[units]
            return self._inner_sum(a, b if index is None else b[index])
        return self._exp_sum(a, b, units, index)

    def _inner_sum(self, a: Tensor, b: Tensor) -> Tensor:
        own = a.shape[1]
        x, y = (t.permute(0, 2, 1).reshape(-1, own) for t in (a, b))
        blocks = _blocks(own, 4 if x.numel() * own > WORTH_SHARING else 1)
        parts = self.workers.map(lambda block: x.T @ y[:, block], blocks)
        return torch.cat(parts, dim=1).double()

    def _exp_sum(self, a: Tensor, b: Tensor, units: Tensor | None, index: Tensor | None) -> Tensor:
        count = a.shape[0] if units is None else len(units)
        own, d = a.shape[1], a.shape[2]
        total = torch.zeros(own, own, dtype=torch.float64, device=self.device)
        on_cpu = self.device.type == "cpu"
        tile = TILE if on_cpu else int(min(self.memory / 16, 256 * TILE))
        slab = int(max(1, min(count, self.memory / 4 / (8 * own * (d + 2)), 8e6 / (own * (d + 2)))))
        height = max(1, min(own, tile // own))
        if on_cpu and own * own * count > WORTH_SHARING:
            height = min(height, -(-own // 4))
        rows = [slice(s, s + height) for s in range(0, own, height)]
        deep = max(1, tile // (height * own))
        for start in range(0, count, slab):
            these = slice(start, min(start + slab, count))
            x = a[these] if units is None else a[units[these]]
            y = b[these] if index is None else b[index[these]]
            left, right = _distance_factors(x, y)

            def task(block: slice, left: Tensor = left, right: Tensor = right) -> None:
                _accumulate(left[:, block], right, deep, total[block])

            if own * own * left.shape[0] > WORTH_SHARING:
                self.workers.map(task, rows)
            else:
                for block in rows:
                    task(block)
        return total

    # -- gradients at soft assignments

    def soft_gradient(self, name: str, X: Mapping[str, Tensor], kernel: str = "inner") -> Tensor:
        """The gradient of F for one group at soft assignments: float64 (n, n), X[other] float (m, m), [a, a'].

        Inner product: two matrix products for each weight of an edge, O(n^3 d). Exact kernel: O(n^4 d), streamed.
        """
        return self.linear(kernel)[name] + self.soft_quadratic(name, X, kernel)

    def soft_quadratic(self, name: str, X: Mapping[str, Tensor], kernel: str = "inner") -> Tensor:
        """`soft_gradient` without its `linear` part: float64 (n, n)."""
        total = torch.zeros(self.sizes[name], self.sizes[name], dtype=torch.float64, device=self.device)
        for index, side, other in self._touching[name]:
            total += self.product(index, side, X[other], kernel)
        return total

    def one_way_terms(self, kernel: str = "exp") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the published one-way K has besides edges between groups: (source, diagonal), float64 (n, n) a
        group: edges to fixed outputs, matched to themselves; and nodes with similarity.
        """
        source, diagonal = (
            {n: torch.zeros(s, s, dtype=torch.float64, device=self.device) for n, s in self.sizes.items()}
            for _ in range(2)
        )
        for edge in self.edges:
            if edge.row is None:
                source[edge.col] += self._at_vertex(edge, "col", None, kernel)
        for node in self.nodes:
            diagonal[node.group] += _pair(node.a[None, :, None], node.b[None, None, :], kernel)
        for name, S in self._scaled_similarity(kernel).items():
            diagonal[name] += S
        return source, diagonal

    def product(self, index: int, side: str, X: Tensor, kernel: str) -> Tensor:
        """E @ X, float64, for one edge, towards `side` ("row" or "col"), X (m, m) over the other side's units."""
        edge = self.edges[index]
        a, b = (edge.a, edge.b) if side == "col" else (edge.a.transpose(1, 2), edge.b.transpose(1, 2))
        d, other, own = a.shape  # contracts `other`
        if kernel == "inner":
            X = X.to(torch.float32)

            def task(block: slice) -> Tensor:
                part = torch.matmul(X, b[:, :, block])  # (d, other, block)
                out = a[0].T @ part[0]
                for tap in range(1, d):
                    out.addmm_(a[tap].T, part[tap])
                return out

            # By size alone, for a result that is the same on any number of threads. The work space is
            # threads * d * other * block floats.
            pieces = 1 if d * other * other * own < WORTH_SHARING else -(-own // 256) * 2
            return torch.cat(self.workers.map(task, _blocks(own, pieces)), dim=1).double()
        if 2 * self.soft_work() <= self.memory / 2:  # all kernel values fit: they are worked out once
            if index not in self._values:
                self._values[index] = self._exp_values(edge.a.permute(1, 2, 0), edge.b.permute(1, 2, 0))
            E, flat = self._values[index], X.to(self.device, torch.float32).flatten()
            return (flat @ E if side == "col" else E @ flat).view(own, own).double()
        return self._exp_product(a.permute(1, 2, 0), b.permute(1, 2, 0), X)

    @staticmethod
    def _exp_values(a: Tensor, b: Tensor) -> Tensor:
        """The exact kernel between all weights of an edge, a, b (row, col, d): float32 (row·row, col·col), [row of A
        and of B, column of A and of B]."""
        row, col, _ = a.shape
        values = a.new_empty(row, row, col, col)
        for r in range(row):
            left, right = _distance_factors(a[r][None], b.reshape(1, -1, b.shape[2]))
            E = torch.bmm(left, right)[0].clamp_min_(0).sqrt_().neg_().exp2_()
            values[r] = E.view(col, row, col).transpose(0, 1)
        return values.view(row * row, col * col)

    def _exp_product(self, a: Tensor, b: Tensor, X: Tensor) -> Tensor:
        other, own, _ = a.shape
        X = X.to(torch.float64)
        total = torch.zeros(own, own, dtype=torch.float64, device=self.device)
        # Row o of A against all of B: (own, other * own) kernel values at a time.
        for o in range(other):
            left, right = _distance_factors(a[o][None], b.reshape(1, -1, b.shape[2]))
            E = torch.bmm(left, right)[0].clamp_min_(0).sqrt_().neg_().exp2_().view(own, other, own)
            total += torch.einsum("aBA,B->aA", E.double(), X[o])
        return total

    def soft_work(self) -> float:
        """Kernel values that one exact soft gradient of all groups takes, the n^4 of `soft_gradient`."""
        return float(sum(2 * (e.a.shape[1] * e.a.shape[2]) ** 2 for e in self.edges if e.row and e.col))

    # -- dense, for tests and teaching

    def affinity(self, kernel: str = "exp", *, memory: float = 4 * GIB) -> Tensor:
        """K of this problem, dense and symmetric: float32 (n*n, n*n) over the n units of all groups in order.

        Row a*n + a'; each edge stands twice at half its value, so that x^T K x = F for a permutation x; what
        depends on one unit alone (nodes, edges to fixed units) stands on the diagonal. For pygmtools'
        solvers: mind that they return X transposed. Raises InputError when K would take more than `memory`
        bytes: 4 n^4.
        """
        n = sum(self.sizes.values())
        check_dense(n, memory, "the solvers of `matching`")
        start = dict(zip(self.sizes, torch.tensor([0, *self.sizes.values()]).cumsum(0).tolist(), strict=False))
        K = torch.zeros(n, n, n, n)
        for name, L in self.linear(kernel).items():
            units = torch.arange(start[name], start[name] + self.sizes[name])
            K[units[:, None], units, units[:, None], units] += L.cpu().float()
        for edge in self.edges:
            if edge.row is None or edge.col is None:
                continue
            rows = slice(start[edge.row], start[edge.row] + self.sizes[edge.row])
            cols = slice(start[edge.col], start[edge.col] + self.sizes[edge.col])
            # (d, b, b', a, a') -> [b, b', a, a']
            values = _pair(edge.a[:, :, None, :, None], edge.b[:, None, :, None, :], kernel).cpu() / 2
            K[rows, rows, cols, cols] += values
            K[cols, cols, rows, rows] += values.permute(2, 3, 0, 1)
        return K.view(n * n, n * n)


class Cache:
    """Exact gradients at permutations, brought up to date by the units that moved since the last look.

    Near convergence few units move, and a gradient costs 2 * moved / n of a fresh one. Holds two float64 (n,
    n) an edge at most, and none at all when these would take more than half of the problem's `memory`.
    """

    def __init__(self, problem: Problem, kernel: str):
        self.problem, self.kernel = problem, kernel
        self._held: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        need = sum(8 * (edge.a.shape[1] ** 2 + edge.a.shape[2] ** 2) for edge in problem.edges)
        self._keep = kernel == "exp" and need <= problem.memory / 2

    def get(self, index: int, side: str, perm: Tensor) -> Tensor:
        edge, at = self.problem.edges[index], self.problem._at_vertex
        perm = perm.to(self.problem.device)
        before, value = self._held.get((index, side), (None, None))
        moved = perm if before is None else (before != perm).nonzero()[:, 0]
        if 2 * len(moved) >= len(perm):
            value = at(edge, side, perm, self.kernel)
        elif len(moved):
            value += at(edge, side, perm, self.kernel, moved) - at(edge, side, before, self.kernel, moved)
        if self._keep:
            self._held[index, side] = (perm.clone(), value)
        return value


def _without_norms(
    state: Mapping[str, Tensor],
    members: Mapping[str, list[tuple[str, Member]]],
    norms: Mapping[str, str],
    eps: float | Mapping[str, float],
    fold: bool,
) -> tuple[dict[str, Tensor], dict[str, list[tuple[str, Member]]]]:
    """The state with each BatchNorm folded into the layer before it or, where it cannot be, reduced to scale
    and shift; and the members that remain.
    """
    state, members = dict(state), dict(members)
    after = {norm: layer for layer, norm in norms.items()}
    for key in [key for key in state if key.endswith(".running_var")]:
        norm = key.removesuffix(".running_var")
        mean, var = state[f"{norm}.running_mean"].double(), state[key].double()
        owners = members.get(key) or members.get(f"{norm}.weight")
        for part in ("weight", "bias", "running_mean", "running_var"):
            if not (part in ("weight", "bias") and not fold):
                members.pop(f"{norm}.{part}", None)
        if not fold or owners is None:
            continue
        scale = (var + (eps.get(norm, 1e-5) if isinstance(eps, Mapping) else eps)).rsqrt()
        if f"{norm}.weight" in state:
            scale = scale * state[f"{norm}.weight"].double()
        shift = -mean * scale
        if f"{norm}.bias" in state:
            shift = shift + state[f"{norm}.bias"].double()
        layer = after.get(norm)
        if layer is None:
            target, values = norm, {"weight": scale, "bias": shift}
        else:
            weight = state[f"{layer}.weight"]
            state[f"{layer}.weight"] = weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))
            if f"{layer}.bias" in state:
                shift = shift + state[f"{layer}.bias"].double() * scale
            target, values = layer, {"bias": shift}
        for part, value in values.items():
            tensor = f"{target}.{part}"
            state[tensor] = value
            members[tensor] = [(name, Member(tensor, 0, m.block, m.offset)) for name, m in owners]
    return state, members


def _side_by_side(
    state_a: Mapping[str, Tensor],
    state_b: Mapping[str, Tensor],
    members: Mapping[str, list[tuple[str, Member]]],
    sizes: Mapping[str, int],
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], dict[str, list[tuple[str, Member]]]]:
    """Both states with the units of each group next to one another on every axis, and the members that say so: a
    channel shuffle scatters them. The order of what is compared changes in both networks alike."""
    a, b, members = dict(state_a), dict(state_b), dict(members)
    for tensor, owners in members.items():
        if not any(member.starts for _, member in owners):
            continue
        length = a[tensor].shape[0]
        limits = sorted({0, length, *(limit for _, m in owners if m.rows for limit in m.rows)})
        placed = []
        for axis in sorted({member.axis for _, member in owners}):
            of_axis = [(name, member) for name, member in owners if member.axis == axis]
            for rows in dict.fromkeys(member.rows for _, member in of_axis):
                part = slice(*rows) if rows else slice(None)
                # On the first axis, rows that read other columns stay apart.
                ends = limits if axis == 0 else [0, a[tensor].shape[axis]]
                order: list[int] = []
                for low, high in itertools.pairwise(ends):
                    for name, m in sorted(of_axis, key=lambda owner: owner[1].offset):
                        places = entries(m, torch.arange(sizes[name])).tolist()
                        if m.rows != rows or not low <= places[0] < high:
                            continue
                        if not all(low <= place < high for place in places):
                            raise InputError(f"graph matching cannot read {tensor}: group {name} spans several parts")
                        placed.append((name, Member(tensor, axis, m.block, len(order), rows)))
                        order += places
                    order += sorted(set(range(low, high)) - set(order))
                for state in (a, b):
                    moved = state[tensor].clone()
                    moved[part] = state[tensor][part].index_select(axis, torch.tensor(order, device=moved.device))
                    state[tensor] = moved
        members[tensor] = placed
    return a, b, members


def _pieces(
    tensor: str,
    owners: Sequence[tuple[str, Member]],
    sizes: Mapping[str, int],
    a: Tensor,
    b: Tensor,
) -> Iterator[tuple[str | None, str | None, Tensor, Tensor]]:
    """Cuts a tensor along the groups that own parts of its first two axes, or of one axis: (row group, column group,
    a, b), where a and b are float32 (d, n_row, n_col), or (n,) for a tensor of one number a unit.
    """
    axes = {member.axis for _, member in owners}
    if len(axes) == 1 and max(axes) > 1 and not any(member.rows for _, member in owners):  # as of a class token
        a, b = (t.movedim(*axes, 0) for t in (a, b))
        owners = [(name, replace(member, axis=0)) for name, member in owners]
    if any(member.axis > 1 for _, member in owners) or a.dim() == 0:
        raise InputError(
            f"graph matching cannot read {tensor} {tuple(a.shape)}: groups may own its first two axes, or one, only"
        )
    matrix = a.dim() > 1
    a, b = (t.detach().float().reshape(t.shape[0], t.shape[1] if matrix else 1, -1) for t in (a, b))
    limits = sorted({limit for _, m in owners if m.rows for limit in m.rows})
    for row, top, n_row, row_block in _cut(owners, 0, None, sizes, a.shape[0], tensor, limits):
        bottom = top + n_row * row_block
        if row is not None and any(top < limit < bottom for limit in limits):
            raise InputError(f"graph matching cannot read {tensor}: group {row} spans parts with other columns")
        for col, left, n_col, col_block in _cut(owners, 1, (top, bottom), sizes, a.shape[1], tensor, ()):
            if row is None and col is None:
                continue
            x, y = (
                t[top:bottom, left : left + n_col * col_block]
                .reshape(n_row, row_block, n_col, col_block, -1)
                .permute(1, 3, 4, 0, 2)
                .reshape(-1, n_row, n_col)
                .contiguous()
                for t in (a, b)
            )
            if matrix:
                yield row, col, x, y
            elif len(x) == 1:
                yield row, None, x[0, :, 0], y[0, :, 0]
            else:  # several numbers a unit, e.g. a BatchNorm over a flattened map: an edge to one fixed unit
                yield row, None, x, y


def _cut(
    owners: Sequence[tuple[str, Member]],
    axis: int,
    rows: tuple[int, int] | None,
    sizes: Mapping[str, int],
    length: int,
    tensor: str,
    limits: Sequence[int],
) -> list[tuple[str | None, int, int, int]]:
    """(group or None, first entry, units, entries a unit) along an axis, without gaps; what no group owns is
    fixed and split at `limits`.
    """
    spans = sorted(
        (m.offset, name, m.block)
        for name, m in owners
        if m.axis == axis and (m.rows is None or rows is None or (m.rows[0] < rows[1] and rows[0] < m.rows[1]))
    )
    cut, at = [], 0
    for offset, name, block in [*spans, (length, None, 1)]:
        if offset < at:
            raise InputError(f"graph matching cannot read {tensor}: groups overlap on axis {axis}")
        marks = [at, *(limit for limit in limits if at < limit < offset), offset]
        cut += [(None, lo, hi - lo, 1) for lo, hi in zip(marks, marks[1:], strict=False) if hi > lo]
        if name is not None:
            cut.append((name, offset, sizes[name], block))
            at = offset + sizes[name] * block
    return cut
