"""Look around by hand: a pair, a matcher, a correction, alpha (notebooks/explore.ipynb shows the panel)."""

from .explorer import Explorer
from .panel import Panel
