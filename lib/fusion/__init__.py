"""Aligned networks in, one fused network out: every correction by name, and the path between two parents."""

from .corrections import CORRECTIONS, check_network, check_options, correct
from .path import Curve, barrier, curve, ensemble, measure
from .selection import BOTH, A, B, choose
from .statistics import Tracked, fold, moments, reset, tracked
from .task import interpolate
