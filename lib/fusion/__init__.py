"""Aligned networks in, one fused network out: every correction by name, and the path between the parents."""

from .aligned import Aligned, align, interpolate
from .controls import CONTROLS, Controlled, Ensemble, Parents, check_control, control, read_control
from .corrections import CORRECTIONS, check_network, correct, read_correction
from .fuse import fuse
from .fused import Fused, Report, load
from .path import Curve, barrier, curve, drop, ensemble, measure, measure_parents
from .statistics import Moments, Tracked, fold, moments, reset, tracked
