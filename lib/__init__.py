"""Fuse trained networks: match their units, average their weights, repair what averaging breaks, measure the path.

    groups  = trace(model, example)
    maps    = match(models, groups, "activation", images=images)
    aligned = align(models, groups, maps)
    fused   = fuse(aligned, correction="least_squares", images=images)
    path    = curve(aligned, alphas, test=test)
    draw(record([path], dataset="mine"))

or all of it at once: fuse(models, images=images). The wings (symmetry, matching, fusion …) hold the rest.
"""

from . import paths  # noqa: F401 (sets the environment; before torch is loaded)


def trace(model, example):
    """The permutation groups of a network, proved with random permutations before they are returned.

    See `symmetry.trace` and `symmetry.prove`; print them to see what they move and what the proof says.
    """
    from . import symmetry

    return symmetry.proved(model, example)


def match(models, groups, matcher="activation", **options):
    """One map a network, into the order of the first: see `matching.match`."""
    from . import matching

    return matching.match(models, groups, matcher, **options)


def align(models, groups, maps, **options):
    """The networks in one order, each permutation proved: see `fusion.align`."""
    from . import fusion

    return fusion.align(models, groups, maps, **options)


def fuse(models, **options):
    """One network from several, aligned ones or as they were trained: see `fusion.fuse`."""
    from . import fusion

    return fusion.fuse(models, **options)


def curve(aligned, alphas, **options):
    """The path between two aligned networks, or along a line in the simplex of many: see `fusion.curve`."""
    from . import fusion

    return fusion.curve(aligned, alphas, **options)


def record(curves, **options):
    """The run record of curves of two or more networks: see `study.own.record`."""
    from .study import own

    return own.record(curves, **options)


def draw(record, **options):
    """A figure of a record: see `paper.figures.draw`."""
    from .paper import figures

    return figures.draw(record, **options)


def main(argv=None):
    """The command `fusebook`: see `command.main`."""
    from . import command

    return command.main(argv)
