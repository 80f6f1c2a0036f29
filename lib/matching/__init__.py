"""Similarity between units + assignment = permutations: every matcher by name, and the solvers behind them."""

from .activation import Moments, activation_similarities, activation_similarity
from .assignment import assign
from .joint import Joint, round_trips
from .matchers import MATCHERS, Matching, check_network, looks_at_images, match, read_matcher
from .peak import Peak
from .problem import Cache, Problem
from .solvers import SOLVERS, Solution, coordinate_descent, sinkhorn, softassign, solve
from .spectral import affinity, chain, spectral, sweep
