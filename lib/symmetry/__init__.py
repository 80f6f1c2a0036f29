"""Which axes of which tensors share a permutation: traced from the network's graph, applied, and proved.

One convention, everywhere: a `perm` is a LongTensor (size,), and unit perm[i] of the moved network takes place i of
the fixed one, so a permuted tensor is tensor.index_select(axis, perm). With perm = [2, 0, 1], old unit 2 comes first.
"""

from .graph import UnsupportedError
from .groups import (
    Group,
    Groups,
    Layer,
    Member,
    SymmetryError,
    Tap,
    by_tensor,
    compose,
    entries,
    inverse,
    permute,
)
from .prove import Proof, prove, proved
from .registry import RULES, rule
from .rules import is_activation
from .tracer import trace
from .walker import Values, walk
