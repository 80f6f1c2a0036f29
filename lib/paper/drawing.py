"""What matching is, drawn."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, ConnectionPatch, Wedge

from .style import BLUE, GREEN, ORANGE, PINK, SKY, VERMILLION, Drawn, PaperFigure, styled

# A little network: 3 inputs, two hidden layers of 4 units, 2 outputs.
_SIZES = (3, 4, 4, 2)
_LETTERS = ("", "abcd", "efgh", "")
_UNIT_COLOURS = (ORANGE, SKY, GREEN, PINK)
_RADIUS = 0.23


@styled
def network_graph() -> Drawn:
    """Two small networks as graphs, their matching, and what averaging gives without it and with it.

    Drawn from numbers: B is A with its hidden units in another order and a little noise; the averages are
    averages of those weights. A unit's letter and colour stand for what it responds to, which is what
    matching has to find out.
    """
    generator = np.random.default_rng(11)
    shapes = zip(_SIZES[1:], _SIZES[:-1], strict=True)
    weights = [generator.normal(size=shape) for shape in shapes]
    weights = [np.sign(w) * np.abs(w / np.abs(w).max()) ** 1.6 for w in weights]
    noisy = [w + generator.normal(scale=0.05, size=w.shape) for w in weights]
    straight = [np.arange(size) for size in _SIZES]
    orders = [np.arange(3), np.array([2, 0, 3, 1]), np.array([1, 3, 0, 2]), np.arange(2)]
    other = [w[np.ix_(orders[layer + 1], orders[layer])] for layer, w in enumerate(noisy)]
    unmatched = [(a + b) / 2 for a, b in zip(weights, other, strict=True)]
    matched = [(a + b) / 2 for a, b in zip(weights, noisy, strict=True)]

    figure = PaperFigure(2, 5.0)
    figure.get_layout_engine().set(wspace=0.04, hspace=0.16, h_pad=0.07, rect=(0, 0, 1, 0.985))
    grid = figure.subplots(2, 3)
    panels = (
        (grid[0, 0], weights, straight, straight, "(a) network A"),
        (grid[0, 2], other, orders, orders, "(c) network B, units in another order"),
        (grid[1, 0], unmatched, straight, orders, "(d) A and B averaged as they are"),
        (grid[1, 1], noisy, straight, straight, "(e) B in A's order: same function"),
        (grid[1, 2], matched, straight, straight, "(f) A and B averaged after matching"),
    )
    for axes, edges, first, second, title in panels:
        _draw_network(axes, edges, first, second)
        axes.set_title(title, loc="center")
    _draw_matching(grid[0, 1], orders)
    grid[0, 1].set_title("(b) matching: which units do the same?", loc="center")
    caption = {"ha": "center", "va": "center", "color": "#444444"}
    for layer, name in enumerate(("inputs", "hidden 1", "hidden 2", "outputs")):
        for axes in (grid[0, 0], grid[0, 2]):
            axes.text(1.3 * layer, -0.1, name, fontsize=6.5, **caption)
    grid[1, 0].text(1.95, -0.1, "unlike units mix, their weights blur", **caption)
    grid[1, 1].text(1.95, -0.1, "units and their edges moved by perm", **caption)
    grid[1, 2].text(1.95, -0.1, "like meets like: the fused network", **caption)
    _arrow(figure, grid[0, 1], (1.95, -0.42), grid[1, 1], (1.95, 4.72))
    _arrow(figure, grid[1, 1], (4.25, 2), grid[1, 2], (-0.35, 2))
    for name, colour in (("positive weight", BLUE), ("negative weight (thicker = larger)", VERMILLION)):
        figure.key(name, Line2D([], [], color=colour, linewidth=2.2))
    return figure, ""


def _places(layer: int) -> list[tuple[float, float]]:
    return [(1.3 * layer, 2 + (_SIZES[layer] - 1) / 2 - unit) for unit in range(_SIZES[layer])]


def _bare(axes: Axes) -> None:
    axes.set(xlim=(-0.4, 4.3), ylim=(-0.4, 4.1), aspect="equal")
    axes.axis("off")


def _draw_network(axes: Axes, weights: list[np.ndarray], first: list[np.ndarray], second: list[np.ndarray]) -> None:
    """A network left to right; in each place a unit that is half `first`'s and half `second`'s unit there."""
    _bare(axes)
    for layer, matrix in enumerate(weights):
        for unit, end in enumerate(_places(layer + 1)):
            for source, start in enumerate(_places(layer)):
                weight = matrix[unit, source]
                strength = min(1.0, abs(weight))
                look = {"linewidth": 0.25 + 2.9 * strength, "alpha": 0.25 + 0.75 * strength}
                axes.plot(*zip(start, end, strict=True), color=BLUE if weight > 0 else VERMILLION, **look)
    for layer in range(len(_SIZES)):
        for place, centre in enumerate(_places(layer)):
            _draw_unit(axes, centre, layer, int(first[layer][place]), int(second[layer][place]))


def _draw_unit(axes: Axes, centre: tuple[float, float], layer: int, first: int, second: int) -> None:
    hidden = bool(_LETTERS[layer])
    colours = [_UNIT_COLOURS[unit] if hidden else "white" for unit in (first, second)]
    ring = {"facecolor": colours[0], "edgecolor": "#222222", "linewidth": 0.8, "zorder": 3}
    axes.add_patch(Circle(centre, _RADIUS, **ring))
    if first != second:
        axes.add_patch(Wedge(centre, _RADIUS, 270, 90, facecolor=colours[1], linewidth=0, zorder=3.5))
        axes.add_patch(Circle(centre, _RADIUS, **ring | {"facecolor": "none", "zorder": 4}))
    if not hidden:
        return
    style = {"ha": "center", "va": "center_baseline", "zorder": 5, "fontweight": "bold"}
    if first == second:
        axes.text(*centre, _LETTERS[layer][first], fontsize=7.5, **style)
        return
    for unit, shift in ((first, -0.095), (second, 0.095)):
        axes.text(centre[0] + shift, centre[1], _LETTERS[layer][unit], fontsize=5.5, **style)


def _draw_matching(axes: Axes, orders: list[np.ndarray]) -> None:
    """Each hidden layer's units of A and of B facing each other, like joined to like, and the permutation."""
    _bare(axes)
    for layer, left in ((1, 0.1), (2, 2.5)):
        right = left + 1.3
        heights = [y for _, y in _places(layer)]
        perm = np.argsort(orders[layer])
        for place, partner in enumerate(perm):
            colour = _UNIT_COLOURS[place]
            ends = ((left, right), (heights[place], heights[partner]))
            axes.plot(*ends, color=colour, linewidth=2.2, solid_capstyle="round")
            _draw_unit(axes, (left, heights[place]), layer, place, place)
            _draw_unit(axes, (right, heights[partner]), layer, place, place)
        axes.text(left, 4.0, "A", ha="center", va="center", fontweight="bold")
        axes.text(right, 4.0, "B", ha="center", va="center", fontweight="bold")
        text = f"hidden {layer}\nperm = {perm.tolist()}"
        axes.text((left + right) / 2, -0.1, text, ha="center", va="center", fontsize=6.5, color="#444444")


def _arrow(figure: Figure, start: Axes, tail: tuple[float, float], end: Axes, head: tuple[float, float]) -> None:
    look = {"arrowstyle": "-|>", "mutation_scale": 11, "linewidth": 1.2, "color": "#444444"}
    arrow = ConnectionPatch(tail, head, start.transData, end.transData, **look)
    arrow.set_in_layout(False)
    figure.add_artist(arrow)
