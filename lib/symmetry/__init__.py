"""Which axes of which tensors share a permutation or another map: traced from a network's graph, applied, proved.

One convention, everywhere: a `perm` is a LongTensor (size,), and unit perm[i] of the moved network takes place i of
the fixed one, so a permuted tensor is tensor.index_select(axis, perm). With perm = [2, 0, 1], old unit 2 comes first.
A matrix M (size, size) maps the units' values z to M·z: row i says what of which old unit makes up the new unit i.
"""

from .graph import UnsupportedError
from .groups import (
    KINDS,
    Gain,
    Group,
    Groups,
    Layer,
    Maps,
    Member,
    SymmetryError,
    Tap,
    act,
    by_tensor,
    compose,
    entries,
    fold,
    folded_by,
    inverse,
    matrix,
)
from .prove import Proof, draw, nearest, prove, proved
from .registry import RULES, rule
from .rules import is_activation
from .tracer import capture, shared, trace
from .walker import Values, walk
from .widths import blanked, completed, embed, in_one_width, shapes_of, widest
