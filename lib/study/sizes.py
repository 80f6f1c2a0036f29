"""What notebooks/size_and_tasks.ipynb does: fuse two networks at many sizes, beside what costs as much."""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .. import fusion, matching, models, symmetry
from ..checks import check_choice, check_whole
from ..fusion.budgets import Dial
from ..fusion.controls import distil
from ..fusion.labels import united
from ..fusion.rows import Shared
from ..fusion.structure import Structure
from ..progress import tqdm
from . import run
from .many import shipped
from .parameters import methods, refusal
from .skew import FIRST_HALF, SECOND_HALF, skewed
from .zoo import RECIPES

PARAMETERS = (
    "preset", "dataset", "model", "width", "width_b", "data", "seed_a", "seed_b", "epochs", "held_out", "matcher",
    "budgets", "separate", "dense", "distilled", "controls", "images", "match_seed", "limit_train", "limit_test",
    "device", "results_path", "figures_dir",
)  # fmt: skip
DATA = ("alike", "halves", "dirichlet0.1", "dirichlet0.5", "tasks")
NORMS = {"simplenet": None, "vgg11": "batch", "resnet20": "batch"}
SKEWED_SHARE = {"simplenet": 0.05}  # of the other half's images that networks of "halves" see; 0.1 elsewhere
REPEATS = 5  # of a timed pass


class MeanLogits(nn.Module):
    """The mean of the outputs of networks, which stay apart."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        return sum(part(x.clone()) for part in self.parts) / len(self.parts)


class Run(run.Run):
    """A pair of networks, fused at many sizes."""

    aligned: fusion.Aligned
    networks: list[nn.Module]  # in one width, with one set of outputs

    @property
    def labels(self) -> list[tuple[int, ...]] | None:
        """The classes of each network's outputs, where they know other ones."""
        return [FIRST_HALF, SECOND_HALF] if self.settings.data == "tasks" else None

    def _spec(self, which: int) -> models.Spec:
        s = self.settings
        seed, width = (s.seed_a, s.width) if which == 0 else (s.seed_b, s.width_b)
        sees: dict[str, Any] = {}
        if s.data == "tasks":
            sees = {"classes": self.labels[which], "own_classes": True}
        elif s.data != "alike":
            sees = skewed(s.data, which, s.seed_a)
            if "share" in sees:
                sees["share"] = SKEWED_SHARE.get(s.model, sees["share"])
        recipe = dataclasses.replace(RECIPES[s.model], epochs=s.epochs)
        return models.Spec(s.model, seed, recipe, width, self.norm, held_out=s.held_out, **sees)

    @functools.cached_property
    def images(self) -> Tensor:
        """The first `images` training images, without labels."""
        return torch.cat([x for x, _ in self.match_batches])

    def align(self) -> dict[str, dict[str, float | None]]:
        """Brings the two networks, trained unless they are there, to one set of outputs, one width and one order, and
        measures them."""
        s, names = self.settings, ("a", "b")
        networks = []
        for which, name in enumerate(names):
            spec = self._spec(which)
            checkpoint = shipped(spec, self.dataset) or models.trained(
                spec, self.dataset, device=self.device, label=f"network {name}"
            )
            self.checkpoints[name] = checkpoint
            networks.append(models.load_state(spec.build(), checkpoint.state, str(checkpoint.path)).to(self.device))
        example, shares = self.images[:2], (0.5, 0.5)
        if self.labels is not None:
            networks = united(networks, self.labels, shares, [self.images], example)
        groups = symmetry.proved(symmetry.widest(networks), example)
        maps = matching.match(
            networks, groups, s.matcher, images=self.images, device=self.device, seed=s.match_seed, progress=False
        )
        self.aligned = fusion.align(networks, groups, maps)
        self.networks, _ = symmetry.in_one_width(networks, groups)
        return fusion.measure_parents(self.networks, self.test, names=names, device=self.device)[0]

    @functools.cached_property
    def dial(self) -> Dial:
        """What all structures share."""
        return Dial(self.aligned, (0.5, 0.5), self.images, self.device)

    @functools.cached_property
    def one(self) -> dict[str, int]:
        """What the wider network costs."""
        plain = Structure(self.dial.plan, 2, {})
        return {"parameters": plain.cost("parameters"), "multiply_adds": plain.cost("multiply-adds")}

    def _row(self, kind: str, method: str, network: nn.Module, structure: Structure | None, **more: Any) -> dict:
        accuracy, loss = models.evaluate(network, self.test, device=self.device)
        costs = dict.fromkeys(self.one, more.pop("times", 1.0))
        if structure is not None:
            costs = {name: structure.cost(name.replace("_", "-")) / self.one[name] for name in self.one}
        row = {"study": "size", "kind": kind, "method": method} | costs | {"milliseconds": self._time(network)} | more
        return row | {"test_accuracy": accuracy, "test_loss": loss}

    @torch.inference_mode()
    def _time(self, network: nn.Module) -> float:
        """Milliseconds an image: the least of some passes over a hundred."""
        images, times = self.test[0][0][:100], []
        for _ in range(REPEATS):
            begin = time.perf_counter()
            network(images.clone())
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - begin)
        return 1000 * min(times) / len(images)

    def structures(self) -> list[tuple[str, dict[str, Any], Structure]]:
        """(method, what was asked for, structure) of every fused network."""
        s, dial, free = self.settings, self.dial, self.dial.plan.free
        found = [("allotted", {"asked": b, "counts": "parameters"}, dial.at(b)) for b in s.budgets]
        found += [("allotted", {"asked": b, "counts": "multiply-adds"}, dial.at(b, "multiply-adds")) for b in s.budgets]
        for k in s.separate:
            if 0 < k < len(free):
                found.append(("first apart", {"asked": k}, dial.whole(k)))
                found.append(("last apart", {"asked": k}, dial.whole(-k)))
        for size in s.dense:
            found.append(("dense", {"asked": size}, dial.dense(size)))
        return found

    def rows(self) -> list[dict[str, Any]]:
        """The parents, their ensemble and every control; every structure, fitted; and one network pruned, at each
        budget below 1."""
        s = self.settings
        controls = fusion.Parents(
            self.networks, self.aligned.groups, self.images, self.held_out(), device=self.device, seed=s.match_seed,
            progress=False,
        )  # fmt: skip
        rows = []
        for name in s.controls:
            made = fusion.control(name, controls)
            times = 2.0 if name == "ensemble" else 1.0
            rows.append(
                self._row("control", name, made.network, None, times=times, seconds=made.seconds, info=made.info)
            )
        apart = Structure(self.dial.plan, 2, {}, frozenset(self.dial.plan.free))
        rows.append(self._row("control", "mean of logits", MeanLogits(self.networks), apart))
        best = max(range(2), key=controls.accuracies.__getitem__)
        names = [f"parent {name}" for name in self.checkpoints]
        rows += [self._row("parent", name, net, None) for name, net in zip(names, self.networks, strict=True)]
        shared = Shared()
        plain = fusion.correct(self.aligned, None, "least_squares", images=self.images, progress=False)
        rows.append(self._row("fused", "one network", plain.model(), None, seconds=plain.seconds))
        options = {"images": self.images, "device": self.device, "progress": False}
        bar = tqdm(self.structures(), desc="fusing", unit="size", mininterval=1)
        for method, asked, structure in bar:
            bar.set_postfix_str(" ".join(map(str, (method, *asked.values()))))
            fused = fusion.correct(self.aligned, None, "least_squares", structure=structure, shared=shared, **options)
            row = self._row("fused", method, fused.model().to(self.device), structure, **asked, seconds=fused.seconds)
            rows.append(row | {"units": structure.as_dict()["units"], "separate": sorted(structure.separate)})
        alone = fusion.align([self.networks[best]], self.aligned.groups, [self.aligned.groups.identity()])
        pruner = Dial(alone, (1.0,), self.images, self.device)
        for budget in tqdm([b for b in s.budgets if b < 1], desc="pruning one", mininterval=1):
            structure = pruner.at(budget)
            fused = fusion.correct(alone, None, "least_squares", structure=structure, **options)
            rows.append(self._row("control", "one parent pruned", fused.model(), structure, asked=budget))
        for budget in tqdm(s.distilled, desc="distilling", mininterval=1):
            structure = self.dial.at(budget)
            student, info = distil(controls, self._student(structure))
            rows.append(self._row("control", "distillation", student, structure, asked=budget, info=info))
        return rows

    def _student(self, structure: Structure) -> nn.Module:
        """A network of a structure for gradient training: what is each parent's own is there, all else fresh."""
        network = structure.module().to(self.device)
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(self.settings.match_seed)
            for module in network.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
        state, exact = network.state_dict(), structure.exact()
        placed = structure.place(self.aligned.states, (0.5, 0.5))
        for node in structure.plan.groups.graph.nodes:
            if node.op == "call_module" and node.name in exact:
                for key in [key for key in state if key.startswith(f"{node.target}.")]:
                    state[key] = placed[key]
        return models.load_state(network, state).eval()


def begin(parameters: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]]) -> Run:
    """Checks the notebook's parameters and opens the data set.

    Args, Raises: as in `run.open_one_model`; parameters are at least `PARAMETERS`.
    """
    opened = run.open_one_model(parameters, PARAMETERS, presets, tuple(NORMS), "size_and_tasks", ("images",))
    settings = opened.pop("settings")
    check_choice("data", settings["data"], DATA)
    settings["width_b"] = settings["width"] if settings["width_b"] is None else settings["width_b"]
    (settings["matcher"],) = settings["matchers"] = methods(
        "matcher", [settings["matcher"]], "matcher", matching.MATCHERS
    )
    settings["controls"] = methods("controls", settings["controls"], "control", fusion.CONTROLS, least=0)
    settings |= {"corrections": ["least_squares"], "evaluate_train": False}
    settings |= {"match_images": settings["images"], "correct_images": settings["images"]}
    _check(settings)
    return Run(norm=NORMS[settings["model"]], settings=SimpleNamespace(**settings), **opened)


def _check(settings: Mapping[str, Any]) -> None:
    """Raises InputError for the first parameter whose value is not accepted."""
    for name, least in {"seed_a": 0, "seed_b": 0, "match_seed": 0, "epochs": 1, "images": 2}.items():
        check_whole(name, settings[name], least)
    ranges = {"budgets": (0, 2), "dense": (0, 2), "distilled": (0, 2), "width": (0, 64), "width_b": (0, 64)}
    for name, (low, high) in ranges.items():
        values = settings[name] if isinstance(settings[name], list | tuple) else [settings[name]]
        for value in values:
            if not isinstance(value, int | float) or isinstance(value, bool) or not low < value <= high:
                raise refusal(name, settings[name], f"numbers > {low}, at most {high}")
    if settings["data"] == "tasks":  # a class that a network does not know has no probability of its own
        if settings["distilled"]:
            raise refusal("distilled", settings["distilled"], "[] with data=tasks")
        if aside := {"ensemble", "distillation"} & {name.partition("(")[0] for name in settings["controls"]}:
            raise refusal("controls", settings["controls"], f"none of {', '.join(sorted(aside))} with data=tasks")
    whole = settings["separate"]
    if not isinstance(whole, list | tuple) or not all(type(k) is int and k > 0 for k in whole):
        raise refusal("separate", whole, "a list of whole numbers of at least 1")
