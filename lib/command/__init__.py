"""The command line: `fusebook` where it is installed, `python -m lib` in a clone."""

from .main import main
