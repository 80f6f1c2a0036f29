"""What the notebooks call: one run of an experiment from its parameters to its record, the leaderboard, scaling."""

from .parameters import check_share
from .places import places
from .run import Run, begin, check_counts
