"""The widgets."""

import contextlib
import html
import itertools
from collections.abc import Iterable, Iterator

import ipywidgets as widgets
from matplotlib.figure import Figure

from .. import fusion, matching, models
from ..checks import InputError
from ..paper.names import model_label
from ..paper.style import BLUE, VERMILLION
from ..study import board
from .explorer import STAGES, Explorer, Place, is_slow, is_three, named, placed, sizes, spelled

TABS = ("Fusing", "Matching", "Loss plane")


def css(name: str) -> str:
    """The CSS class of a part of the panel."""
    return f"fusebook-{name.lower().replace(' ', '-')}"


def _put(image: widgets.Image, figure: Figure | None) -> None:
    image.value = figure._repr_png_() if figure else b""
    image.layout.display = "" if figure else "none"


class Panel(widgets.VBox):
    """The widgets: choices, shares, what they reach, the figures of the tab in front. A mistake is told in one line."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        given, wide, box = explorer.given, {"description_width": "initial"}, widgets.Layout

        def choice(name: str, options: Iterable[str | tuple[str, str]], width: str) -> widgets.Dropdown:
            layout, value = box(width=width), given[name]
            return widgets.Dropdown(options=options, value=value, description=name, style=wide, layout=layout)

        specs = {name: sidecar["spec"] for name, sidecar in board.pairs().items()}
        pairs = [(f"{model_label(spec | {'name': spec['model']})}: {name}", name) for name, spec in specs.items()]
        self.pair = choice("pair", pairs, "340px")
        self.third = choice("third", self._thirds(given["pair"]), "270px")
        # the notebook's own choice may have options
        self.matcher = choice("matcher", list(dict.fromkeys([*matching.MATCHERS, given["matcher"]])), "220px")
        self.correction = choice("correction", list(dict.fromkeys([*fusion.CORRECTIONS, given["correction"]])), "220px")
        self.alpha, self.third_share = (
            widgets.FloatSlider(
                value=given[name], min=0, max=1, step=0.05, description=what, readout_format=".2f",
                continuous_update=False, style=wide, layout=box(width="440px"),
            )
            for name, what in (("alpha", "α, share of B"), ("third_share", "share of C"))
        )  # fmt: skip
        self.budget = widgets.FloatSlider(
            value=given["budget"], min=0.5, max=2, step=0.05, description="size, × one network", readout_format=".2f",
            continuous_update=False, style=wide, layout=box(width="440px"),
        )  # fmt: skip
        self.fit = widgets.Button(description="fit and measure", button_style="primary")
        self.whole = widgets.Button()
        self.plane = widgets.Button(description="measure the plane", button_style="primary")
        self.bar = widgets.IntProgress(layout=box(width="220px", display="none"))
        self.status, self.readout, self.hint = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.images = {
            tab: [widgets.Image(format="png") for _ in range(most)] for tab, most in zip(TABS, (2, 4, 1), strict=True)
        }
        for image in self._every_image():
            image.layout = box(max_width="900px", width="100%", object_fit="contain")
        boxes = [widgets.VBox(self.images[tab]) for tab in TABS]
        boxes[2].children = (widgets.HBox([self.plane, self.hint]), *boxes[2].children)
        self.tabs = widgets.Tab(boxes, titles=TABS)
        super().__init__([
            widgets.HBox([self.pair, self.third, self.matcher, self.correction], layout=box(flex_flow="row wrap")),
            widgets.HBox(
                [self.alpha, self.third_share, self.budget, self.whole, self.fit], layout=box(flex_flow="row wrap")
            ),
            self.readout, widgets.HBox([self.bar, self.status]), self.tabs,
        ])  # fmt: skip
        for part, name in ((self, "panel"), (self.status, "status"), (self.readout, "readout")):
            part.add_class(css(name))
        for part, tab in zip(boxes, TABS, strict=True):
            part.add_class(css(tab))
        self.pair.observe(lambda change: setattr(self.third, "options", self._thirds(change.new)), "value")
        for control in (self.third, self.alpha):
            control.observe(lambda _: self._make_room(self.third_share, self.alpha), "value")
        self.third_share.observe(lambda _: self._make_room(self.alpha, self.third_share), "value")
        moved = (self.pair, self.third, self.matcher, self.correction, self.alpha, self.third_share, self.budget)
        for control in moved:
            control.observe(lambda _: self.refresh(), "value")
        self.tabs.observe(lambda _: self.refresh(), "selected_index")
        self.fit.on_click(lambda _: self.refresh(fit=True))
        self.whole.on_click(lambda _: self.measure_path())
        self.plane.on_click(lambda _: self.measure_plane())
        self.refresh()

    @property
    def chosen(self) -> tuple[str, str, str, Place]:
        third = self.third.value
        place = placed(third, self.alpha.value, self.third_share.value)
        return named(self.pair.value, third), self.matcher.value, self.correction.value, place

    @staticmethod
    def _thirds(pair: str) -> list[tuple[str, str]]:
        return [("(a pair alone)", ""), *((name, name) for name in board.thirds(pair))]

    def _make_room(self, other: widgets.FloatSlider, moved: widgets.FloatSlider) -> None:
        """Two shares sum to 1 at most: what was not moved gives way."""
        if self.third.value:
            other.value = min(other.value, round(1 - moved.value, 9))

    def _say(self, text: str, colour: str = "#555") -> None:
        self.status.value = f'<div style="color:{colour}; min-height:1.5em">{html.escape(text)}</div>'

    @contextlib.contextmanager
    def _working(self, what: str) -> Iterator[None]:
        """Says that something is being worked on and at which stage, and greys what is no longer true; a mistake of the
        user is told in its place."""
        self._say(f"working: {what} …", BLUE)
        self.readout.value = f'<div style="opacity:0.35">{self.readout.value}</div>'

        def tell(stage: str) -> None:
            self._tick(STAGES.index(stage), len(STAGES))
            self._say(f"working: {what}, {stage} …", BLUE)

        self.explorer.tell = tell
        try:
            yield
        except InputError as error:
            self._clear()
            self._say(str(error), VERMILLION)
        except Exception as error:
            self._say(f"{type(error).__name__}: {error}", VERMILLION)
            raise
        else:
            self._say(self.explorer.pair(self.chosen[0]).note)
        finally:
            self.bar.layout.display = "none"

    def _clear(self) -> None:
        self.readout.value = '<div style="font-size:1.5em; min-height:2.4em">—</div>'
        for image in self._every_image():
            _put(image, None)

    def _every_image(self) -> list[widgets.Image]:
        return [image for listed in self.images.values() for image in listed]

    def _tick(self, done: int, total: int) -> None:
        self.bar.layout.display = ""
        self.bar.value, self.bar.max = done, total

    def refresh(self, fit: bool = False) -> None:
        """Measures what is chosen, unless it is measured or slow and nobody asked to `fit` it, and shows it."""
        name, matcher, corrected, place = self.chosen
        slow, three = is_slow(corrected), is_three(name)
        self.fit.layout.display = "" if slow else "none"
        self.third_share.layout.display = "" if three else "none"
        self.budget.layout.display = "" if sizes(corrected) else "none"
        self.budget.max = 3 if three else 2
        self.whole.description = f"measure the {'simplex' if three else 'path'}"
        with self._working(f"{matcher} + {corrected} at {spelled(place)}"):
            self.explorer.pair(name).run.check_correction(corrected)
            if fit or not slow or self.explorer.is_measured(*self.chosen):
                self.explorer.point(*self.chosen)
            if fit and sizes(corrected) and self.budget.value != 1:
                self.explorer.sized(*self.chosen, self.budget.value)
            self._show()

    def measure_path(self) -> None:
        """Measures the path, or the simplex, where the notebook says, and shows it."""
        name, matcher, corrected, _ = self.chosen
        places = self.explorer.places(name)
        with self._working(f"the {'simplex' if is_three(name) else 'path'} under {matcher} + {corrected}"):
            for done, place in enumerate(places):
                self._tick(done, len(places))
                self.explorer.point(name, matcher, corrected, place)
            self._show()

    def measure_plane(self) -> None:
        """Measures the loss plane, and shows it."""
        with self._working("the plane through three networks"):
            self.explorer.plane(*self.chosen[:3], tick=self._tick)
            self._show()

    def _show(self) -> None:
        self._tell()
        explorer, chosen, tab = self.explorer, self.chosen, TABS[self.tabs.selected_index or 0]
        if tab == "Fusing":
            figures = [explorer.path(*chosen), explorer.filters(*chosen)]
        elif tab == "Matching":
            figures = list(explorer.matchings(*chosen[:2]))
        else:
            self.plane.disabled = ready = explorer.is_plane_measured(*chosen[:3])
            figures = [explorer.plane_figure(*chosen) if ready else None]
            count, images = explorer.given["plane_size"] ** 2, explorer.given["plane_images"]
            self.hint.value = "" if ready else f"about {count} networks, each on {images} test images"
        for image, figure in itertools.zip_longest(self.images[tab], figures):
            _put(image, figure)

    def _tell(self) -> None:
        """The numbers over the figures."""
        name, _, corrected, place = self.chosen
        pair = self.explorer.pair(name)
        data = pair.run.dataset
        ends = " · ".join(
            f"{side.upper()} {100 * values['test_accuracy']:.1f} % ({values['test_loss']:.3f})"
            for side, values in pair.parents.items()
        )
        beside = " · ".join(
            f"{control.replace('_', ' ')} {100 * values['test_accuracy']:.1f} %"
            for control, values in self.explorer.controls(name).items()
        )
        big, loss, line = "—", "not fitted yet", ""
        if not self.explorer.is_measured(*self.chosen):
            line = f"{corrected} takes about {self.explorer.fit_seconds(name):.0f} s: press fit and measure"
        else:
            accuracy, loss, above = self.explorer.summary(*self.chosen).values()
            more = f", perplexity {models.perplexity(loss):.2f}" if data.test.is_text else ""
            big, loss = f"{100 * accuracy:.1f} %", f"cross-entropy {loss:.3f} nats{more}"
            side = "above" if above >= 0 else "below"
            line = f"{abs(100 * above):.1f} points {side} the parents, weighed by these shares"
        what = "set of three" if is_three(name) else "pair"
        size = self._size()
        self.readout.value = (
            '<div style="display:flex; gap:1.6em; align-items:baseline; flex-wrap:wrap; line-height:1.4">'
            f'<span class="fusebook-accuracy" style="font-size:1.9em; font-weight:600">{big}</span>'
            f"<span><b>{loss}</b> at {spelled(place)}<br>{line}{size}</span>"
            f'<span style="color:#555">parents: {ends}<br>controls: {beside}<br>'
            f"{data.name}, first {len(data.test):,} test images, one {what} (n = 1)</span></div>"
        )

    def _size(self) -> str:
        """A line on the network of the size that the second slider says, where it is not one network's."""
        budget, corrected = self.budget.value, self.chosen[2]
        if not sizes(corrected) or budget == 1:
            return ""
        if not self.explorer.is_sized(*self.chosen, budget):
            return f"<br>with {budget:.2f} × the parameters: press fit and measure"
        found = self.explorer.sized(*self.chosen, budget)
        counted = ", ".join(f"{cost:.2f} × the {kind}" for kind, cost in found.cost.items())
        values = f"{100 * found.values['test_accuracy']:.1f} %, {found.values['test_loss']:.3f} nats"
        return f'<br><span class="fusebook-size">with {counted}: <b>{values}</b></span>'
