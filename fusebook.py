"""In a clone the verbs under the name that they have where the wheel is installed, and the command `fusebook`."""

from lib import align, curve, draw, fuse, main, match, record, trace

__all__ = ["align", "curve", "draw", "fuse", "main", "match", "record", "trace"]
