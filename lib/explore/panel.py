"""The widgets."""

import contextlib
import html
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import ipywidgets as widgets
from matplotlib.figure import Figure

from .. import fusion, matching, models
from ..checks import InputError
from ..paper.names import model_label
from ..paper.style import BLUE, SIZES, VERMILLION
from ..progress import telling
from ..records import portable
from ..study import board
from .explorer import STAGES, Explorer, Place, is_slow, is_three, named, placed, sizes, spelled
from .worker import Cancelled, Worker

TABS = ("Fusing", "Matching", "Loss plane")
WHOLE = 150 * SIZES[2]  # pixels, of an image of two columns
STEP = 0.005  # of the bar: smaller ones are not worth a message to the browser


def css(name: str) -> str:
    """The CSS class of a part of the panel."""
    return f"fusebook-{name.lower().replace(' ', '-')}"


def _pixels(png: bytes) -> int:
    """The width of an image."""
    return int.from_bytes(png[16:20], "big")


def _listed(parts: Iterable[str]) -> str:
    """Parts in one line, none of them broken where it ends."""
    return " · ".join(f'<span style="white-space:nowrap">{part}</span>' for part in parts)


STALE = css("stale")
# Controls beside the figures where the page is wide enough for both, over them where it is not. An image is at most as
# wide as its pixels, and at least as wide as a page of 800 pixels with JupyterLab's file browser leaves it.
STYLE = f"""<style>
.{css("panel")} {{ flex-flow: row wrap; align-items: flex-start; column-gap: 16px }}
.{css("controls")} {{ flex: 1 1 300px; min-width: 0 }}
.{css("figures")} {{ flex: 100 1 540px; min-width: 0; --jp-widgets-container-padding: 2px }}
.{css("figures")} img {{ width: auto; min-width: 340px; height: auto; align-self: flex-start }}
.{STALE} {{ opacity: 0.35 }}
</style>"""


class View(NamedTuple):
    """What is to be seen."""

    chosen: tuple[str, str, str, Place]
    budget: float
    tab: str


class Panel(widgets.Box):
    """The widgets: choices, shares, what they reach, the figures of the tab in front. A mistake is told in one line.

    What is computed is so in a thread (`worker`), after the first view, which is there when the panel is. What is shown
    changes when all of it is known: until then it is grey where it is of another choice, and when it is cancelled the
    choice goes back to what is shown.
    """

    def __init__(self, explorer: Explorer) -> None:
        self.explorer, self.worker = explorer, Worker()
        given, wide, box = explorer.given, {"description_width": "initial"}, widgets.Layout

        def choice(name: str, options: Iterable[str | tuple[str, str]]) -> widgets.Dropdown:
            layout, value = box(width="auto"), given[name]
            return widgets.Dropdown(options=options, value=value, description=name, style=wide, layout=layout)

        def slider(name: str, what: str, least: float, most: float) -> widgets.FloatSlider:
            return widgets.FloatSlider(
                value=given[name], min=least, max=most, step=0.05, description=what, readout_format=".2f",
                continuous_update=False, style=wide, layout=box(width="auto"),
            )  # fmt: skip

        def button(text: str = "", **options: str) -> widgets.Button:
            return widgets.Button(description=text, layout=box(width="auto", flex="none"), **options)

        self.pair = choice("pair", [(self._label(name, sidecar), name) for name, sidecar in board.pairs().items()])
        self.third = choice("third", self._thirds(given["pair"]))
        # the notebook's own choice may have options
        self.matcher = choice("matcher", list(dict.fromkeys([*matching.MATCHERS, given["matcher"]])))
        self.correction = choice("correction", list(dict.fromkeys([*fusion.CORRECTIONS, given["correction"]])))
        self.alpha = slider("alpha", "α, share of B", 0, 1)
        self.third_share = slider("third_share", "share of C", 0, 1)
        self.budget = slider("budget", "size, × one network", 0.5, 2)
        self.fit = button("fit and measure", button_style="primary")
        self.whole = button()
        self.plane = button("measure the plane", button_style="primary")
        self.cancel = button("cancel", button_style="warning")
        self.export = button("export figures", tooltip="the figures of this tab, as PNG and PDF")
        self.save = button("save network", tooltip="the fused network, its sidecar and its card")
        self.bar = widgets.FloatProgress(max=1, layout=box(width="auto", flex="1"))
        self.status, self.readout, self.hint = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.boxes = {tab: widgets.VBox() for tab in TABS}
        pages = list(self.boxes.values())
        pages[2] = widgets.VBox([widgets.HBox([self.plane, self.hint], layout=box(flex_flow="row wrap")), pages[2]])
        self.tabs = widgets.Tab(pages, titles=TABS, selected_index=0, layout=box(width="100%"))
        controls = widgets.VBox([
            self.pair, self.third, self.matcher, self.correction, self.alpha, self.third_share, self.budget,
            widgets.HBox([self.whole, self.fit], layout=box(flex_flow="row wrap")),
            self.readout, widgets.HBox([self.bar, self.cancel]), self.status,
            widgets.HBox([self.export, self.save], layout=box(flex_flow="row wrap")),
        ])  # fmt: skip
        figures = widgets.Box([self.tabs])
        super().__init__([widgets.HTML(STYLE, layout=box(display="none")), controls, figures])
        named_parts = {"panel": self, "controls": controls, "figures": figures}
        for name, part in (named_parts | {"status": self.status, "readout": self.readout} | self.boxes).items():
            part.add_class(css(name))
        self.pair.observe(lambda change: setattr(self.third, "options", self._thirds(change.new)), "value")
        for control in (self.third, self.alpha):
            control.observe(lambda _: self._make_room(self.third_share, self.alpha), "value")
        self.third_share.observe(lambda _: self._make_room(self.alpha, self.third_share), "value")
        moved = (self.pair, self.third, self.matcher, self.correction, self.alpha, self.third_share, self.budget)
        self._controls = [*((control, "value") for control in moved), (self.tabs, "selected_index")]
        self._going_back = False
        for control, trait in self._controls:
            control.observe(lambda _: None if self._going_back else self.worker.ask(self.refresh), trait)
        asked = {
            self.fit: self.fit_and_measure, self.whole: self.measure_path, self.plane: self.measure_plane,
            self.export: self.export_figures, self.save: self.save_network,
        }  # fmt: skip
        for button, work in asked.items():
            button.on_click(lambda _, work=work: self.worker.ask(work))
        self.cancel.on_click(lambda _: self.worker.cancel())
        self._shown: tuple[View, list] | None = None
        self.refresh()

    @property
    def chosen(self) -> tuple[str, str, str, Place]:
        third = self.third.value
        place = placed(third, self.alpha.value, self.third_share.value)
        return named(self.pair.value, third), self.matcher.value, self.correction.value, place

    @property
    def view(self) -> View:
        return View(self.chosen, self.budget.value, TABS[self.tabs.selected_index])

    @property
    def images(self) -> dict[str, list[widgets.Image]]:
        """The figures of each tab, as they are shown."""
        return {tab: list(box.children) for tab, box in self.boxes.items()}

    def _label(self, name: str, sidecar: Mapping[str, Any]) -> str:
        """A pair in the choice, with the data set that it lacks."""
        spec = sidecar["spec"]
        lacks = self.explorer.lacks(sidecar)
        return f"{model_label(spec | {'name': spec['model']})}: {name}" + (f" (needs {lacks})" if lacks else "")

    @staticmethod
    def _thirds(pair: str) -> list[tuple[str, str]]:
        return [("(a pair alone)", ""), *((name, name) for name in board.thirds(pair))]

    def _make_room(self, other: widgets.FloatSlider, moved: widgets.FloatSlider) -> None:
        """Two shares sum to 1 at most: what was not moved gives way."""
        if self.third.value:
            other.value = min(other.value, round(1 - moved.value, 9))

    def _say(self, text: str, colour: str = "#555") -> None:
        self.status.value = f'<div style="color:{colour}; line-height:1.4">{html.escape(text)}</div>'

    # What is asked for ------------------------------------------------------------------------------------------------

    def refresh(self, fit: bool = False) -> None:
        """Measures what is chosen, unless it is measured or slow and nobody asked to `fit` it, and shows it."""
        self._arrange()
        view = self.view
        (name, matcher, corrected, place), slow = view.chosen, is_slow(view.chosen[2])

        def work() -> None:
            self.explorer.pair(name).run.check_correction(corrected)
            if fit or not slow or self.explorer.is_measured(*view.chosen):
                self.explorer.point(*view.chosen)
            if fit and sizes(corrected) and view.budget != 1:
                self.explorer.sized(*view.chosen, view.budget)

        self._do(view, f"{matcher} + {corrected} at {spelled(place)}", work)

    def fit_and_measure(self) -> None:
        self.refresh(fit=True)

    def measure_path(self) -> None:
        """Measures the path, or the simplex, where the notebook says, and shows it."""
        view = self.view
        name, matcher, corrected, _ = view.chosen
        places = self.explorer.places(name)

        def work() -> None:
            for done, place in enumerate(places):
                self._tick(done, len(places))
                self.explorer.point(name, matcher, corrected, place)

        self._do(view, f"the {'simplex' if is_three(name) else 'path'} under {matcher} + {corrected}", work)

    def measure_plane(self) -> None:
        """Measures the loss plane, and shows it."""
        view = self.view
        work = partial(self.explorer.plane, *view.chosen[:3], tick=self._tick)
        self._do(view, "the plane through three networks", work)

    def export_figures(self) -> None:
        """Writes the figures of the tab in front."""
        view = self.view

        def work() -> str:
            files = self.explorer.export(self._figures(view, here=False), *view.chosen)
            if not files:
                raise InputError("this tab shows no figure yet")
            return f"wrote {', '.join(path.name for path in files)} in {portable(files[0].parent)}"

        self._do(view, "the figures of this tab", work)

    def save_network(self) -> None:
        """Writes the fused network that the numbers are of."""
        view = self.view
        budget = view.budget if sizes(view.chosen[2]) else 1.0

        def work() -> str:
            if not self._is_known(view):
                raise InputError("this network is not fitted yet; accepted: fit and measure first")
            path = self.explorer.save(*view.chosen, budget)
            return f"wrote {portable(path)}, with its sidecar (.json) and card (.md)"

        self._do(view, "the fused network", work)

    def _is_known(self, view: View) -> bool:
        """Whether the network of the choice and, where it is of another size, of that size is measured."""
        other = sizes(view.chosen[2]) and view.budget != 1
        return self.explorer.is_sized(*view.chosen, view.budget) if other else self.explorer.is_measured(*view.chosen)

    # How it is done ---------------------------------------------------------------------------------------------------

    def _do(self, view: View, what: str, work: Callable[[], object]) -> None:
        """Does some work and shows what `view` then shows; what `work` returns is said, if it is text. Says at which
        stage it is, and greys what is no longer true. A mistake of the user is told in one line."""
        settings = [getattr(control, trait) for control, trait in self._controls]
        self._say(f"working: {what} …", BLUE)
        self._grey(self._shown is None or self._shown[0][:2] != view[:2])
        self._stage, self._part, self.bar.value = 0, (0.0, 1.0), 0
        self.bar.layout.visibility = self.cancel.layout.visibility = "visible"
        try:
            with self.explorer.lock, self.worker.cancellable(), self._told(what):
                said = work()
                readout = self._numbers(view)
                drawn = [figure._repr_png_() for figure in self._figures(view).values()]
                note = self.explorer.pair(view.chosen[0]).note
        except Cancelled:
            self._go_back()
        except InputError as error:
            if self._shown is None or self._shown[0] != view:  # else what is there is still true
                self._put(view, '<div style="font-size:1.5em">—</div>', [])
            self._shown = view, settings
            self._grey(False)
            self._say(str(error), VERMILLION)
        except Exception as error:
            self._say(f"{type(error).__name__}: {error}", VERMILLION)
            raise
        else:
            self._put(view, readout, drawn)
            self._shown = view, settings
            self._grey(False)
            self._say(said if isinstance(said, str) else note)
        finally:
            self.bar.layout.visibility = self.cancel.layout.visibility = "hidden"

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Within it status and bar follow the stages of the work."""

        def tell(stage: str) -> None:
            self._stage = max(self._stage, STAGES.index(stage))  # of what figures ask for they come again
            self._within(0, 1)
            self._say(f"working: {what}, {stage} …", BLUE)

        before, self.explorer.tell = self.explorer.tell, tell
        try:
            with telling(self._within):
                yield
        finally:
            self.explorer.tell = before

    def _go_back(self) -> None:
        """After work was cancelled: to the choice that is shown."""
        self._going_back = True
        self.budget.max = 3  # as it may have been
        for (control, trait), value in zip(self._controls, self._shown[1], strict=True):
            setattr(control, trait, value)
        self._arrange()
        self._going_back = False
        self._grey(False)
        self._say("cancelled: back to what was shown before", VERMILLION)

    def _arrange(self) -> None:
        """Shows the controls that the choice has."""
        name, _, corrected, _ = self.chosen
        three = is_three(name)
        shown = {self.fit: is_slow(corrected), self.third_share: three, self.budget: sizes(corrected)}
        for control, there in shown.items():
            control.layout.display = "" if there else "none"
        self.budget.max = 3 if three else 2
        self.whole.description = f"measure the {'simplex' if three else 'path'}"

    def _grey(self, stale: bool) -> None:
        for part in (self.readout, *self.boxes.values()):
            (part.add_class if stale else part.remove_class)(STALE)

    def _tick(self, done: int, total: int) -> None:
        """The bar where `done` of `total` alike are done; the next one moves it on by its stages."""
        self._stage, self._part = 0, (done / max(1, total), 1 / max(1, total))
        self._within(0, 1)

    def _within(self, done: int, total: int) -> None:
        """The bar at a share of the stage, which is a part of all. A stage may be of several steps, each of unknown
        weight: with a new one the bar goes back to where the stage began."""
        start, length = self._part
        value = start + length * (self._stage + done / total) / len(STAGES)
        if done == 0 or value >= self.bar.value + STEP:
            self.bar.value = value

    # What is shown ----------------------------------------------------------------------------------------------------

    def _put(self, view: View, readout: str, drawn: list[bytes]) -> None:
        self.readout.value = readout
        box = self.boxes[view.tab]
        while len(box.children) < len(drawn):
            box.children += (widgets.Image(format="png"),)
        box.children = box.children[: len(drawn)]
        for image, png in zip(box.children, drawn, strict=True):
            image.value = png
            # as much of the page as of a paper, so that letters are of one size in all figures
            image.layout.max_width = f"{min(100.0, 100 * _pixels(png) / WHOLE):.0f}%"
        for tab, other in self.boxes.items():  # of another choice; drawn when it comes to the front
            if tab != view.tab and (self._shown is None or self._shown[0][:2] != view[:2]):
                other.children = ()
        if view.tab == TABS[2]:
            self.plane.disabled = bool(drawn)
            given = self.explorer.given
            cost = f"about {given['plane_size'] ** 2} networks, each on {given['plane_images']} test images"
            self.hint.value = "" if drawn else cost

    def _figures(self, view: View, here: bool = True) -> dict[str, Figure]:
        """Those of the tab, by what they show; `here`: with the mark of where the sliders stand, which is the panel's
        alone."""
        explorer, chosen = self.explorer, view.chosen
        if view.tab == "Fusing":
            path = "simplex" if is_three(chosen[0]) else "path"
            found = {path: explorer.path(*chosen, here=here), "filters": explorer.filters(*chosen)}
        elif view.tab == "Matching":
            found = dict(explorer.matchings(*chosen[:2]))
        else:
            ready = explorer.is_plane_measured(*chosen[:3])
            found = {"plane": explorer.plane_figure(*chosen) if ready else None}
        return {kind: figure for kind, figure in found.items() if figure}

    def _numbers(self, view: View) -> str:
        """The numbers beside the figures."""
        name, _, corrected, place = view.chosen
        pair = self.explorer.pair(name)
        data = pair.run.dataset
        ends = _listed(
            f"{side.upper()} {100 * values['test_accuracy']:.1f} % ({values['test_loss']:.3f})"
            for side, values in pair.parents.items()
        )
        beside = _listed(
            f"{control.replace('_', ' ')} {100 * values['test_accuracy']:.1f} %"
            for control, values in self.explorer.controls(name).items()
        )
        big, loss, line = "—", "not fitted yet", ""
        if not self.explorer.is_measured(*view.chosen):
            line = f"{corrected} takes about {self.explorer.fit_seconds(name):.0f} s: press fit and measure"
        else:
            accuracy, loss, above = self.explorer.summary(*view.chosen).values()
            more = f", perplexity {models.perplexity(loss):.2f}" if data.test.is_text else ""
            big, loss = f"{100 * accuracy:.1f} %", f"cross-entropy {loss:.3f} nats{more}"
            side = "above" if above >= 0 else "below"
            line = f"{abs(100 * above):.1f} points {side} the parents, weighed by these shares"
        what = "set of three" if is_three(name) else "pair"
        caution = self.explorer.caution(name)
        if caution:
            caution = f'<div class="{css("caution")}" style="color:{VERMILLION}">{caution}</div>'
        return (
            '<div style="line-height:1.4">'
            f'<div class="{css("accuracy")}" style="font-size:1.9em; font-weight:600">{big}</div>'
            f"<div><b>{loss}</b> at {spelled(place)}<br>{line}{self._size(view)}</div>"
            f'<div style="color:#555">parents: {ends}<br>controls: {beside}<br>'
            f"{data.name}, {self.explorer.on_test(name)}, {_listed([f'one {what} (n = 1)'])}</div>{caution}</div>"
        )

    def _size(self, view: View) -> str:
        """A line on the network of the size that the second slider says, where it is not one network's."""
        if not sizes(view.chosen[2]) or view.budget == 1:
            return ""
        if not self._is_known(view):
            return f"<br>with {view.budget:.2f} × the parameters: press fit and measure"
        found = self.explorer.sized(*view.chosen, view.budget)
        counted = ", ".join(f"{cost:.2f} × the {kind}" for kind, cost in found.cost.items())
        values = f"{100 * found.values['test_accuracy']:.1f} %, {found.values['test_loss']:.3f} nats"
        return f'<br><span class="{css("size")}">with {counted}: <b>{values}</b></span>'
