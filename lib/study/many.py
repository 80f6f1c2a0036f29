"""What notebooks/many_networks.ipynb does: fuse ever more networks of one set, and find planted orders again."""

import copy
import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .. import fusion, loaders, matching, models, paths
from ..checks import check_choice, check_whole
from ..matching.joint import to_the_first
from ..progress import tqdm
from ..symmetry import Groups
from . import run, scaling
from .parameters import check_share, methods, refusal
from .zoo import RECIPES

PARAMETERS = (
    "preset", "dataset", "model", "width", "first_seed", "counts", "classes", "share", "epochs", "held_out",
    "matchers", "corrections", "merge_linear", "match_images", "correct_images", "match_seed", "orders", "divisions",
    "planted_noises", "planted_seeds", "limit_train", "limit_test", "device", "results_path", "figures_dir",
)  # fmt: skip
PLANTED = 4  # copies of one network


class Run(run.Run):
    """One set of networks of one architecture."""

    def networks(self) -> list[nn.Module]:
        """As many as the largest count, trained (unless they are there already), in the order of their seeds."""
        s = self.settings
        recipe = dataclasses.replace(RECIPES[self.model], epochs=s.epochs)
        for i in range(max(s.counts)):
            seen: dict[str, Any] = {}
            if s.classes:
                first = i * s.classes
                seen = {"classes": tuple(sorted((first + k) % 10 for k in range(s.classes))), "share": s.share}
            spec = models.Spec(self.model, s.first_seed + i, recipe, s.width, self.norm, held_out=s.held_out, **seen)
            self.checkpoints[f"s{spec.seed}"] = shipped(spec, self.dataset) or models.trained(
                spec, self.dataset, device=self.device, label=f"network {i + 1} of {max(s.counts)}"
            )
        return [self._merged(self._network(name)).to(self.device).eval() for name in self.checkpoints]

    def _fused(self, aligned: fusion.Aligned, correction: str, shares: Sequence[float] | None = None) -> dict:
        images = self.correct_batches(correction)
        fused = fusion.correct(aligned, shares, correction, images=images, device=self.device, progress=False)
        measures = fusion.measure(aligned.model, fused.state, self.test, device=self.device)
        return {"test_accuracy": measures["test_accuracy"], "test_loss": measures["test_loss"]} | {
            "correct_seconds": fused.seconds
        }

    def rows(self, networks: Sequence[nn.Module], parents: Mapping[str, Mapping]) -> list[dict[str, Any]]:
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
                of = list(parents.values())[:n]
                best = max(of, key=lambda each: each["test_accuracy"])
                mean = {name: math.fsum(each[name] for each in of) / n for name in ("test_accuracy", "test_loss")}
                ensemble = fusion.ensemble(some, self.test, device=self.device)
                for name, each in (("best parent", best), ("mean parent", mean), ("ensemble", ensemble)):
                    measures = {metric: each[metric] for metric in ("test_accuracy", "test_loss")}
                    rows.append(common | {"kind": "control", "method": name} | measures)
            maps = self.match_by(matcher, some, progress=False)
            aligned = fusion.align(some, self.groups, maps)
            for correction in s.corrections:
                row = common | {"kind": "fused", "method": f"{matcher} + {correction}"}
                row |= {"matcher": matcher, "correction": correction, "objective": maps[1].objective}
                row |= {"match_seconds": aligned.match_seconds, "match_peak_bytes": maps[1].peak_bytes}
                rows.append(row | self._fused(aligned, correction))
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
                aligned = fusion.align(some, self.groups, maps := self.match_by(matcher, some, progress=False))
                row = {"study": "orders", "n": len(some), "matcher": matcher, "order": order}
                rows.append(row | {"objective": maps[1].objective} | self._fused(aligned, s.corrections[0]))
            if "strategy" not in matcher and len(networks) > 2:
                pairs = itertools.combinations(range(len(networks)), 2)
                one_by_one = {
                    (i, j): self.match_by(matcher, [networks[i], networks[j]], progress=False)[1] for i, j in pairs
                }
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
        aligned = fusion.align(some, self.groups, self.match_by(matcher, some, progress=False))
        cases = list(itertools.product(s.corrections, simplex(d)))
        for correction, shares in tqdm(cases, desc="simplex", mininterval=1):
            row = {"study": "simplex", "matcher": matcher, "correction": correction, "shares": list(shares)}
            rows.append(row | self._fused(aligned, correction, shares))
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


def simplex(divisions: int) -> list[tuple[float, float, float]]:
    """All shares of three networks in steps of 1 / `divisions`."""
    d = divisions
    return [(i / d, j / d, (d - i - j) / d) for i in range(d + 1) for j in range(d + 1 - i)]


def shipped(spec: models.Spec, dataset: loaders.Dataset) -> models.Checkpoint | None:
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

    Args, Raises: as in `run.open_one_model`; parameters are at least `PARAMETERS`.
    """
    opened = run.open_one_model(
        parameters, PARAMETERS, presets, ("simplenet", "vgg11"), "many_networks", ("match_images", "correct_images")
    )
    settings = opened.pop("settings")
    settings["matchers"] = methods("matchers", settings["matchers"], "matcher", matching.MATCHERS)
    settings["corrections"] = methods("corrections", settings["corrections"], "correction", fusion.CORRECTIONS)
    settings |= {"controls": [], "evaluate_train": False}
    _check(settings)
    norm = "batch" if settings["model"] == "vgg11" else None
    made = Run(norm=norm, settings=SimpleNamespace(**settings), **opened)
    for names, check in ((settings["matchers"], made.check_matcher), (settings["corrections"], made.check_correction)):
        for name in names:
            check(name)
    return made


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
    leasts = {"first_seed": 0, "match_seed": 0, "orders": 0, "divisions": 0, "classes": 0}
    leasts |= {"epochs": 1, "match_images": 2, "correct_images": 2}
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
