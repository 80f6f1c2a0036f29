"""Graph matching: networks as graphs (units are nodes, weights edges) and the permutations that line them up.

Here, the published spectral matching of one-way chains (Liu et al., ICML 2022), dense as pygmtools wants it
and matrix-free. The problem for any architecture is in `problem`, its solvers in `solvers`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..checks import InputError, check_choice
from .assignment import assign
from .kernels import Workers
from .problem import GIB, check_dense


def chain(
    state_a: Mapping[str, Tensor], state_b: Mapping[str, Tensor], groups: Mapping
) -> tuple[list[Tensor], list[Tensor], list[str]]:
    """The weights of a plain chain of layers as one array a layer, ready for `sweep` and `affinity`.

    Plain means: every group joins the outputs of one layer to the inputs of the next, and nothing else (no
    bias, no BatchNorm, no branch). Returns (c1, c2, names): c[l] is float32 (n_out, n_in, d), where d
    counts the weights on one edge (kernel taps of a convolution, pixels of a flattened map, 1 for a
    scalar); names[l] is the group of c[l]'s outputs, so len(names) = len(c) - 1.

    Raises InputError naming the tensor that is in the way.
    """

    def refuse(what: str) -> InputError:
        return InputError(
            f"spectral matching takes a plain chain of layers without biases or BatchNorm, but {what}; "
            "matcher 'graph' handles it"
        )

    out_of, into, order = {}, {}, {}
    for name, group in groups.items():
        for member in group.members:
            tensor, shape = member.tensor, tuple(state_a[member.tensor].shape)
            side = {0: out_of, 1: into}.get(member.axis)
            if len(shape) < 2 or side is None:
                raise refuse(f"{tensor} {shape} belongs to group {name}")
            if (
                member.offset
                or member.rows
                or member.starts
                or member.block * group.size != shape[member.axis]
                or tensor in side
            ):
                raise refuse(f"{tensor} {shape} is shared by several groups or several parts of one")
            if member.axis == 0 and member.block != 1:
                raise refuse(f"{tensor} {shape} has {member.block} rows a unit")
            side[tensor] = name
            order.setdefault(name, {}).setdefault(member.axis, []).append((tensor, member.block))
    for name, sides in order.items():
        for axis, what in ((0, "written"), (1, "read")):
            tensors = [tensor for tensor, _ in sides.get(axis, [])]
            if len(tensors) != 1:
                raise refuse(f"group {name} is {what} by {len(tensors)} tensors ({', '.join(tensors) or 'none'})")

    first = [tensor for tensor in out_of if tensor not in into]
    if len(first) != 1:
        raise refuse(f"it has {len(first)} first layers ({', '.join(first) or 'none'})")
    layers, names, blocks, tensor = [first[0]], [], [1], first[0]
    while tensor in out_of:
        names.append(out_of[tensor])
        tensor, block = order[names[-1]][1][0]
        layers.append(tensor)
        blocks.append(block)
    stray = sorted(
        key for key, value in state_a.items() if value.dim() > 1 and value.is_floating_point() and key not in layers
    )
    if len(names) != len(groups) or stray:
        left = stray or [name for name in groups if name not in names]
        raise refuse(f"{left[0]} lies outside it")

    def arrays(state: Mapping[str, Tensor]) -> list[Tensor]:
        weights = []
        for layer, block in zip(layers, blocks, strict=True):
            weight = state[layer].detach().to("cpu", torch.float32)
            weights.append(weight.reshape(weight.shape[0], weight.shape[1] // block, -1).contiguous())
        return weights

    return arrays(state_a), arrays(state_b), names


def affinity(
    c1: Sequence[Tensor],
    c2: Sequence[Tensor],
    *,
    biases: tuple[Sequence[Tensor | None], Sequence[Tensor | None]] | None = None,
    memory: float = 4 * GIB,
) -> Tensor:
    """The published affinity matrix K, dense, as pygmtools' solvers take it (Liu et al., ICML 2022).

    Nodes are the input channels, then the outputs of each layer, n in all. With w[b, a] the weights on the
    edge from unit a to unit b of the next layer, entry [(a, a'), (b, b')] is exp(-||w1[b, a] - w2[b',
    a']||_2), one way only; ones stand at [(a, a), (a, a)] of input and output nodes. A hidden layer's bias
    puts exp(-|b1[a] - b2[a']|) at [(a, a'), (a, a')] for every a, a' of that layer.

    c1, c2: per layer float32 (n_out, n_in, d), from `chain`. biases: for each network one (n_out,) tensor
    or None a layer; the last layer's is ignored, as in the published code. Returns float32 (n*n, n*n), row
    a*n + a'. Raises InputError when K would take more than `memory` bytes: 4 n^4.
    """
    sizes = [c1[0].shape[1], *(c.shape[0] for c in c1)]
    n = sum(sizes)
    check_dense(n, memory, "solver='sweep' or matcher 'graph'")
    K = torch.zeros(n, n, n, n)
    ends = [slice(0, sizes[0]), slice(n - sizes[-1], n)]
    for node in [i for end in ends for i in range(n)[end]]:
        K[node, node, node, node] = 1
    start = 0
    for layer, (A, B) in enumerate(zip(c1, c2, strict=True)):
        o, i, d = A.shape
        pre, post = slice(start, start + i), slice(start + i, start + i + o)
        for b in range(o):
            E = torch.cdist(A[b], B.reshape(-1, d)).neg_().exp_()  # (a, b'a')
            K[pre, pre, start + i + b, post] = E.view(i, o, i).transpose(1, 2)
        if biases and layer < len(c1) - 1 and biases[0][layer] is not None:
            b1, b2 = (side[layer].detach().float().cpu() for side in biases)
            nodes = torch.arange(post.start, post.stop)
            a, b = nodes[:, None], nodes[None, :]
            K[a, b, a, b] = (b1[:, None] - b2[None, :]).abs().neg().exp()
        start += i
    return K.view(n * n, n * n)


def sweep(c1: Sequence[Tensor], c2: Sequence[Tensor], *, rows: int = 8) -> list[Tensor]:
    """Spectral matching (Leordeanu & Hebert, ICCV 2005) of the one-way affinity K, without K.

    K is block upper-triangular with nilpotent hidden blocks, so the power iteration of `pygmtools.sm` comes
    to one backward sweep: X of the outputs is the identity, and X of a layer's inputs is E @ X of its
    outputs, where E is that layer's block of K. E is streamed, `rows` outputs of network A at a time: time
    O(n_out^2 n_in^2 d), memory 4 * rows * n_out * n_in^2 bytes. The first layer's weights never enter.

    c1, c2: per layer float32 (n_out, n_in, d), from `chain`. Returns X for each hidden layer, float32 (n,
    n), X[a, a'] with a of network A and a' of B, of unit Frobenius norm: X of `pygmtools.sm` up to one
    scale a layer. The signal is about 1 % of X's mean, so the order of summation is fixed: rows in
    sequence.
    """
    X, layers = torch.eye(c1[-1].shape[0]), []
    with Workers(torch.device("cpu"), threads=1).session():  # many short operations: see Workers
        for A, B in zip(c1[:0:-1], c2[:0:-1], strict=True):
            o, i, d = A.shape
            Y = torch.zeros(i, i)
            for s in range(0, o, rows):
                E = torch.cdist(A[s : s + rows].reshape(-1, d), B.reshape(-1, d)).neg_().exp_()
                Y += torch.einsum("baBA,bB->aA", E.view(-1, i, o, i), X[s : s + rows])
            X = Y / Y.norm()
            layers.insert(0, X)
    return layers


def spectral(
    state_a: Mapping[str, Tensor],
    state_b: Mapping[str, Tensor],
    groups: Mapping,
    *,
    solver: str = "sweep",
    orientation: str = "correct",
    memory: float = 4 * GIB,
) -> tuple[dict[str, Tensor], dict]:
    """The published matching of two plain chains: spectral on the one-way affinity, then assignment layer
    by layer.

    solver: "sweep" (matrix-free) or "pygmtools" (dense K, `pygmtools.sm`, `pygmtools.hungarian`; at most
    `memory` bytes of K). orientation: "correct", or "reference" for the published code's slip:
    `pygmtools.sm` hands X back transposed, so that the inverse permutation gets applied. Moving B, that is
    the assignment of X transposed.

    Returns (perms, info). perms: LongTensor (n,) a group, moving B: unit perm[a] of B takes place a of A.
    info["similarity"]: X of each group, float32 (n, n), [a, a'] with a of A whatever the orientation.
    Raises InputError for an unknown option, a network that is no plain chain, a dense K above `memory`.
    """
    check_choice("solver", solver, ("sweep", "pygmtools"))
    check_choice("orientation", orientation, ("correct", "reference"))
    c1, c2, names = chain(state_a, state_b, groups)
    if solver == "sweep":
        layers, solve_assignment = sweep(c1, c2), assign
    else:
        layers, solve_assignment = _pygmtools_sm(c1, c2, memory), _pygmtools_hungarian
    similarity = dict(zip(names, layers, strict=True))
    perms = {name: solve_assignment(X if orientation == "correct" else X.T) for name, X in similarity.items()}
    return perms, {"similarity": similarity, "solver": solver, "orientation": orientation}


def _pygmtools_sm(c1: Sequence[Tensor], c2: Sequence[Tensor], memory: float) -> list[Tensor]:
    import pygmtools  # here, since only this path needs it and it takes a while to import

    K = affinity(c1, c2, memory=memory)
    sizes = [c1[0].shape[1], *(c.shape[0] for c in c1)]
    n = sum(sizes)
    # pygmtools un-vectorises column-major what K indexes row-major: turn it back to X[a, a'], a of A.
    X = pygmtools.sm(K, n, n, backend="pytorch").T
    starts = torch.tensor(sizes).cumsum(0).tolist()
    return [X[s : s + size, s : s + size].contiguous() for s, size in zip(starts, sizes[1:-1], strict=False)]


def _pygmtools_hungarian(X: Tensor) -> Tensor:
    import pygmtools

    return pygmtools.hungarian(X, backend="pytorch").argmax(dim=1)
