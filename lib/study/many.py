"""What notebooks/many_networks.ipynb does: fuse ever more networks of one set, and find planted orders again."""

import copy
import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import fusion, loaders, matching, models, paths, symmetry
from ..checks import check_choice, check_injected, check_whole
from ..matching.joint import to_the_first
from ..records import portable, provenance, record
from ..symmetry import Groups
from . import scaling
from .parameters import check_share, methods, refusal

PARAMETERS = (
    "preset", "dataset", "model", "width", "first_seed", "counts", "classes", "share", "epochs", "held_out",
    "matchers", "corrections", "merge_linear", "match_images", "correct_images", "match_seed", "orders", "divisions",
    "planted_noises", "planted_seeds", "limit_train", "limit_test", "device", "results_path", "figures_dir",
)  # fmt: skip
# How networks of the notebooks on pairs are trained, but for the number of epochs.
RECIPES = {
    "simplenet": {"batch_size": 100, "lr": 0.02, "weight_decay": 0.0, "augment": False},
    "vgg11": {},
}
PLANTED = 4  # copies of one network


@dataclasses.dataclass
class Run:
    """One set of networks of one architecture: `settings` are the checked parameters with the preset's filled in."""

    given: dict[str, Any]
    settings: SimpleNamespace
    preset: str
    dataset: loaders.Dataset
    device: torch.device
    started: datetime
    results_path: Path
    figures_dir: Path
    checkpoints: list[models.Checkpoint] = dataclasses.field(default_factory=list)
    groups: Groups | None = None
    parents: dict[str, dict[str, float | None]] = dataclasses.field(default_factory=dict)

    @property
    def norm(self) -> str | None:
        """Of the architecture."""
        return "batch" if self.settings.model == "vgg11" else None

    @functools.cached_property
    def test(self) -> list[tuple[Tensor, Tensor]]:
        """The test set, read and normalised once."""
        return list(self._batches(self.dataset.test))

    def fresh(self) -> nn.Module:
        """A network of the architecture; only its structure counts."""
        return models.build(self.settings.model, width=self.settings.width, norm=self.norm)

    def networks(self) -> list[nn.Module]:
        """As many as the largest count, trained (unless they are there already), in the order of their seeds."""
        s = self.settings
        recipe = models.Recipe(epochs=s.epochs, **RECIPES[s.model])
        for i in range(max(s.counts)):
            seen: dict[str, Any] = {}
            if s.classes:
                first = i * s.classes
                seen = {"classes": tuple(sorted((first + k) % 10 for k in range(s.classes))), "share": s.share}
            spec = models.Spec(
                s.model, s.first_seed + i, recipe, s.width, self.norm, held_out=s.held_out, **seen
            )  # fmt: skip
            label = f"network {i + 1} of {max(s.counts)}"
            self.checkpoints.append(_shipped(spec, self.dataset) or models.trained(
                spec, self.dataset, device=self.device, label=label
            ))  # fmt: skip
        networks = []
        for checkpoint in self.checkpoints:
            network = models.load_state(self.fresh(), checkpoint.state, str(checkpoint.path))
            networks.append((models.merge_linear(network) if s.merge_linear else network).to(self.device).eval())
        self.groups = symmetry.proved(networks[0], models.example(s.model))
        self.parents = fusion.measure_parents(
            networks, self.test, names=[f"s{s.first_seed + i}" for i in range(len(networks))], device=self.device
        )[0]
        return networks

    def _batches(self, split: loaders.Split, augment: bool = False) -> Iterable:
        return loaders.MemoryLoader(
            split, loaders.BATCH, normalise=models.normalisation(self.settings.model), device=self.device,
            augment=augment, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip

    def _images(self, correction: str) -> Iterable | None:
        row = fusion.CORRECTIONS[fusion.read_correction(correction)[0]]
        if not row.images:
            return None
        augment = row.augmented and models.ARCHITECTURES[self.settings.model].augment
        batches = self._batches(self.dataset.train.head(self.settings.correct_images), augment)
        return batches if augment else list(batches)

    @functools.cached_property
    def match_batches(self) -> list[tuple[Tensor, Tensor]]:
        """The first match_images training images, read and normalised once."""
        return list(self._batches(self.dataset.train.head(self.settings.match_images)))

    def match(self, networks: Sequence[nn.Module], matcher: str) -> list[matching.Matching]:
        """The maps of one matcher, with all of these networks."""
        images = self.match_batches if matching.looks_at_images(matcher) else None
        return matching.match(
            networks, self.groups, matcher, images=images, device=self.device, seed=self.settings.match_seed,
            progress=False,
        )  # fmt: skip

    def _measured(self, aligned: fusion.Aligned, correction: str, shares: Sequence[float] | None = None) -> dict:
        images = self._images(correction)
        fused = fusion.correct(aligned, shares, correction, images=images, device=self.device, progress=False)
        measures = fusion.measure(aligned.model, fused.state, self.test, device=self.device)
        return {"test_accuracy": measures["test_accuracy"], "test_loss": measures["test_loss"]} | {
            "correct_seconds": fused.seconds
        }

    def rows(self, networks: Sequence[nn.Module]) -> list[dict[str, Any]]:
        """For each count n of the first networks: every matcher with every correction at equal shares, and as controls
        the best and the mean parent (by the test set, which favours the best) and the ensemble."""
        s = self.settings
        rows: list[dict[str, Any]] = []
        steps = tqdm(list(itertools.product(s.counts, s.matchers)), desc="fusing", unit="matching", mininterval=1)
        for n, matcher in steps:
            steps.set_postfix_str(f"n = {n}, {matcher}")
            some = networks[:n]
            common = {"study": "many", "n": n}
            if matcher == s.matchers[0]:
                of = list(self.parents.values())[:n]
                best = max(of, key=lambda each: each["test_accuracy"])
                mean = {name: math.fsum(each[name] for each in of) / n for name in ("test_accuracy", "test_loss")}
                ensemble = fusion.ensemble(some, self.test, device=self.device)
                for name, each in (("best parent", best), ("mean parent", mean), ("ensemble", ensemble)):
                    measures = {metric: each[metric] for metric in ("test_accuracy", "test_loss")}
                    rows.append(common | {"kind": "control", "method": name} | measures)
            maps = self.match(some, matcher)
            aligned = fusion.align(some, self.groups, maps)
            for correction in s.corrections:
                row = common | {"kind": "fused", "method": f"{matcher} + {correction}"}
                row |= {"matcher": matcher, "correction": correction, "objective": maps[1].objective}
                row |= {"match_seconds": aligned.match_seconds, "match_peak_bytes": maps[1].peak_bytes}
                rows.append(row | self._measured(aligned, correction))
        return rows

    def order_rows(self, networks: Sequence[nn.Module]) -> list[dict[str, Any]]:
        """The largest count of networks in `orders` random orders of the list, matched and averaged: how much the
        result owes to the order; and the share of units that come back on the way round three networks where pairs are
        matched one by one."""
        s, rows = self.settings, []
        if not s.orders:
            return rows
        networks = networks[: max(s.counts)]
        generator = torch.Generator().manual_seed(s.match_seed)
        orders = [torch.randperm(len(networks), generator=generator).tolist() for _ in range(s.orders)]
        for matcher in tqdm([m for m in s.matchers if m not in ("none", "random")], desc="orders", mininterval=1):
            for order in orders:
                some = [networks[i] for i in order]
                aligned = fusion.align(some, self.groups, maps := self.match(some, matcher))
                row = {"study": "orders", "n": len(some), "matcher": matcher, "order": order}
                rows.append(row | {"objective": maps[1].objective} | self._measured(aligned, s.corrections[0]))
            if "strategy" not in matcher and len(networks) > 2:
                pairs = itertools.combinations(range(len(networks)), 2)
                one_by_one = {(i, j): self.match([networks[i], networks[j]], matcher)[1] for i, j in pairs}
                rows.append(
                    {"study": "round_trips", "n": len(networks), "matcher": matcher,
                     "share": matching.round_trips(one_by_one)}
                )  # fmt: skip
        return rows

    def simplex_rows(self, networks: Sequence[nn.Module]) -> list[dict[str, Any]]:
        """The first three networks, by the last matcher, over all shares in steps of 1 / `divisions`, with every
        correction."""
        s, rows = self.settings, []
        if not s.divisions:
            return rows
        some, d, matcher = networks[:3], s.divisions, s.matchers[-1]
        aligned = fusion.align(some, self.groups, self.match(some, matcher))
        cases = list(itertools.product(s.corrections, simplex(d)))
        for correction, shares in tqdm(cases, desc="simplex", mininterval=1):
            row = {"study": "simplex", "matcher": matcher, "correction": correction, "shares": list(shares)}
            rows.append(row | self._measured(aligned, correction, shares))
        return rows

    def planted_rows(self) -> list[dict[str, Any]]:
        """`PLANTED` noisy copies of one random network, each in an order of its own: the share of units that each
        matcher that needs no images brings back to their places, for every noise and seed."""
        s, rows = self.settings, []
        matchers = [m for m in s.matchers if m not in ("none", "random") and not matching.looks_at_images(m)]
        cases = list(itertools.product(s.planted_noises, s.planted_seeds))
        for noise, seed in tqdm(cases, desc="planted", unit="set", mininterval=1):
            networks, groups, truths = planted_set(s.model, s.width, PLANTED, noise, seed)
            for matcher in matchers:
                maps = matching.match(networks, groups, matcher, progress=False)
                shares = [scaling.recovered_share(*each) for each in zip(truths[1:], maps[1:], strict=True)]
                row = {"study": "planted", "n": PLANTED, "matcher": matcher, "noise": noise, "seed": seed}
                rows.append(row | {"recovered": math.fsum(shares) / len(shares)})
        return rows

    def record(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The record, checked, not yet written: its "parents" and "checkpoints" are those of all the networks."""
        s = self.settings
        checkpoints = {
            name: {"file": portable(each.path), "sha256": each.sha256, "spec": each.spec}
            for name, each in zip(self.parents, self.checkpoints, strict=True)
        }
        images = {"train": len(self.dataset.train), "test": len(self.dataset.test)}
        return record(
            experiment="many_networks", preset=self.preset, dataset=self.dataset.name,
            model={"name": s.model, "width": float(s.width), "norm": self.norm}, checkpoints=checkpoints,
            parents=self.parents, images=images | {"match": s.match_images, "correct": s.correct_images}, rows=rows,
            provenance=provenance(self.given, self.dataset, self.device, self.started),
        )  # fmt: skip


def simplex(divisions: int) -> list[tuple[float, float, float]]:
    """All shares of three networks in steps of 1 / `divisions`."""
    d = divisions
    return [(i / d, j / d, (d - i - j) / d) for i in range(d + 1) for j in range(d + 1 - i)]


def _shipped(spec: models.Spec, dataset: loaders.Dataset) -> models.Checkpoint | None:
    """The shipped checkpoint that was trained just so."""
    wanted = json.loads(json.dumps(spec.as_dict()))  # as a sidecar gives it back
    for path in sorted(paths.CHECKPOINTS.glob(f"{spec.model}*-s{spec.seed}.safetensors")):
        sidecar = models.read_sidecar(path)
        if (sidecar.get("spec"), sidecar.get("dataset_sha256")) == (wanted, dataset.sha256):
            return models.read_checkpoint(path, sidecar)
    return None


def planted_set(
    model: str, width: float, count: int, noise: float, seed: int
) -> tuple[list[nn.Module], Groups, list[dict[str, Tensor]]]:
    """(noisy copies of one random network, each permuted; their groups; the maps that bring each into the order of the
    first): see `scaling.planted`."""
    base, groups, _, _ = scaling.plant(model, width, noise, seed)
    generator = torch.Generator().manual_seed(2_000_003 + seed)
    networks, truths = [], []
    for _ in range(count):
        state, truth = scaling.planted(base, groups, noise, generator)
        networks.append(models.load_state(copy.deepcopy(base), state).eval())
        truths.append(truth)
    return networks, groups, to_the_first(truths)


def begin(parameters: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]]) -> Run:
    """Checks the notebook's parameters and opens the data set.

    Args:
        parameters: at least `PARAMETERS` by name (the notebook passes globals()).
        presets: {"quick": {parameter: {model: value, or {data set: value}}}, "paper": …}, for those that are None.

    Raises:
        InputError: in one line, before anything is trained or written.
    """
    started = datetime.now(UTC)
    check_injected(parameters)
    given = {name: parameters[name] for name in PARAMETERS}
    check_choice("preset", given["preset"], ("quick", "paper", "auto"))
    check_choice("model", given["model"], RECIPES)
    device = loaders.pick_device(given["device"])
    preset = given["preset"]
    if preset == "auto":
        preset = "paper" if device.type == "cuda" else "quick"
    dataset = models.open_dataset(given["dataset"], given["model"])
    settings = dict(given)
    for name, by_model in presets[preset].items():
        if given[name] is None:
            value = by_model[given["model"]]
            settings[name] = value[dataset.name] if isinstance(value, Mapping) else value
    settings["matchers"] = methods("matchers", given["matchers"], "matcher", matching.MATCHERS)
    settings["corrections"] = methods("corrections", settings["corrections"], "correction", fusion.CORRECTIONS)
    _check(settings)
    results_path = paths.target(given["results_path"], paths.LOCAL / "many_networks.json")
    figures_dir = paths.target(given["figures_dir"], paths.FIGURES / "local")
    paths.check_writable("results_path", results_path)
    paths.check_writable("figures_dir", figures_dir, folder=True)
    train = dataset.train.head(given["limit_train"])
    dataset = dataclasses.replace(dataset, train=train, test=dataset.test.head(given["limit_test"]))
    left = len(train) - max(settings["match_images"], settings["correct_images"])
    if settings["held_out"] > max(left, 0):
        used = f"at most what match_images and correct_images leave of {len(train)} training images"
        raise refusal("held_out", settings["held_out"], used)
    run = Run(given, SimpleNamespace(**settings), preset, dataset, device, started, results_path, figures_dir)
    for correction in settings["corrections"]:
        fusion.check_network(correction, run.fresh())
    return run


def _check(settings: Mapping[str, Any]) -> None:
    """Raises InputError for the first parameter whose value is not accepted."""
    for name, least in {"counts": 2, "planted_seeds": 0}.items():
        values = settings[name]
        if not isinstance(values, list | tuple) or not all(type(n) is int and n >= least for n in values):
            raise refusal(name, values, f"a list of whole numbers of at least {least}")
        if list(values) != sorted(set(values)):
            raise refusal(name, values, "a rising list without repeats")
    if not settings["counts"]:
        raise refusal("counts", settings["counts"], "a list of whole numbers of at least 2")
    leasts = {"first_seed": 0, "held_out": 0, "match_seed": 0, "limit_train": 0, "limit_test": 0, "orders": 0}
    leasts |= {"divisions": 0, "epochs": 1, "match_images": 2, "correct_images": 2, "classes": 0}
    for name, least in leasts.items():
        check_whole(name, settings[name], least)
    if settings["classes"] > 9:
        raise refusal("classes", settings["classes"], "0 for all alike, or at most 9")
    if settings["divisions"] and max(settings["counts"]) < 3:
        raise refusal("divisions", settings["divisions"], "0 where counts ends below 3: the simplex is of three")
    check_share("share", settings["share"])
    numbers = {"width": [settings["width"]], "planted_noises": settings["planted_noises"]}
    for name, values in numbers.items():
        for value in values if isinstance(values, list | tuple) else ["no list"]:
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
                raise refusal(name, settings[name], "numbers > 0")
    check_choice("merge_linear", settings["merge_linear"], (True, False))
    if settings["results_path"] and not str(settings["results_path"]).endswith(".json"):
        raise refusal("results_path", settings["results_path"], "a path that ends in .json")
