"""What every experiment notebook does alike: check its parameters, open data and networks, match, measure, record.

A notebook calls `begin` in its first code cell, so that bad input fails in a second, before anything is trained;
the steps after it are methods of the `Run` that it returns.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import fusion, loaders, matching, models, paths, symmetry
from ..checks import InputError, check_whole
from ..matching import Matching
from ..models import merge_linear
from ..records import curve_entry, origin, portable, run_record
from ..symmetry import Groups
from .parameters import PARAMETERS, _refuse, check

# Images at a time where nothing is trained. Twice as fast as 500 on two CPU cores (SimpleNet: 0.24 against 0.47 ms an
# image and core), whose activations no longer fit the caches.
BATCH = 250


@dataclasses.dataclass
class Run:
    """One run of an experiment on one pair: its checked parameters, data and networks. `begin` makes it."""

    experiment: str
    model: str
    norm: str | None
    given: dict[str, Any]
    settings: dict[str, Any]
    preset: str
    dataset: loaders.Dataset
    device: torch.device
    started: datetime
    results_path: Path
    figures_dir: Path
    checkpoints: dict[str, Path] = dataclasses.field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        settings = self.__dict__.get("settings", {})
        if name in settings:
            return settings[name]
        raise AttributeError(name)

    @property
    def architecture(self) -> dict[str, Any]:
        """The record's "model"."""
        return {"name": self.model, "width": float(self.width), "norm": self.norm}

    # Networks ---------------------------------------------------------------------------------------------------------

    def build(self) -> nn.Module:
        """A fresh network of the run's architecture, its consecutive linear layers merged where the run asks for it."""
        return self._merged(self._unmerged())

    def _merged(self, network: nn.Module) -> nn.Module:
        return merge_linear(network) if self.settings.get("merge_linear") else network

    def _unmerged(self) -> nn.Module:
        return models.build(self.model, width=self.width, norm=self.norm, seed=0)

    @cached_property
    def groups(self) -> Groups:
        """The permutation groups of the architecture, traced and proved with random permutations."""
        groups = symmetry.trace(self.build(), models.example(self.model))
        symmetry.prove(self.build(), groups, models.example(self.model))
        return groups

    def open_pair(self, recipe: models.Recipe | None = None, **skew) -> tuple[nn.Module, nn.Module]:
        """Networks A and B: from checkpoints where given, else trained by `recipe` (or found already trained).

        Args:
            skew: {"a": …, "b": …} of further fields of `training.Spec`, such as the classes each network sees.
        """
        specs = {
            side: models.Spec(
                self.model,
                self.settings[f"seed_{side}"],
                recipe,
                self.width,
                self.norm,
                held_out=self.settings.get("held_out", 0),
                **skew.get(side, {}),
            )  # fmt: skip
            for side in ("a", "b")
            if side not in self.checkpoints
        }
        if len(specs) == 2 and specs["a"] == specs["b"]:
            raise InputError(f"A and B would be one network, both of seed {self.seed_a}; accepted: two seeds")
        for side, spec in specs.items():
            self.checkpoints[side] = models.trained(
                spec, self.dataset, loader=self.loader, device=self.device, label=f"network {side.upper()}"
            )
        states = {side: models.read_state(path) for side, path in self.checkpoints.items()}
        self._check_distinct(states)
        pair = [
            self._merged(models.load_state(self._unmerged(), states[side], str(self.checkpoints[side])))
            for side in ("a", "b")
        ]
        return pair[0].to(self.device), pair[1].to(self.device)

    def _check_distinct(self, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Raises InputError where both networks are there and are the same: no pair, whatever the barrier says."""
        if len(states) == 2 and all(
            torch.equal(tensor, states["b"].get(name, torch.empty(0))) for name, tensor in states["a"].items()
        ):
            files = " and ".join(path.name for path in self.checkpoints.values())
            raise InputError(f"A and B are the same network ({files}); accepted: two networks")

    # Images -----------------------------------------------------------------------------------------------------------

    def _batches(self, which: str, count: int = 0, augment: bool = False) -> list[tuple[Tensor, Tensor]]:
        split = getattr(self.dataset, which).head(count)
        generator = torch.Generator().manual_seed(0)
        normalise = models.normalisation(self.model)
        batches = loaders.MemoryLoader(
            split, BATCH, normalise=normalise, device=self.device, augment=augment, generator=generator
        )
        return list(batches) if len(split) <= 10_000 else batches

    @cached_property
    def test(self) -> list[tuple[Tensor, Tensor]]:
        """The test set, read and normalised once."""
        return self._batches("test")

    @cached_property
    def train(self) -> Iterable[tuple[Tensor, Tensor]] | None:
        """The training set as it is, where evaluate_train asks for it, else None."""
        return self._batches("train") if self.evaluate_train else None

    @cached_property
    def match_batches(self) -> list[tuple[Tensor, Tensor]]:
        """The first match_images training images, as they are."""
        return self._batches("train", self.match_images)

    def correct_batches(self, name: str = "bn_reset", count: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """The first correct_images (or `count`) training images for the correction `name`: augmented as in training
        where the correction wants that and the model trains so."""
        augment = fusion.CORRECTIONS[name].augmented and models.ARCHITECTURES[self.model][2][0] > 1
        return self._batches("train", count or self.correct_images, augment=augment)

    def rehearse(
        self,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        counts: Mapping[str, Iterable[int]] | None = None,
    ) -> None:
        """Raises InputError, before any training, for matcher options that are not accepted (each matcher named in
        `options` is tried on two random images) and for lists of image counts that hold anything but whole numbers
        ≥ 2."""
        fresh, images = self.build(), [models.example(self.model)]
        for name, chosen in (options or {}).items():
            matching.match(fresh, fresh, self.groups, name, batches=images, progress=False, **chosen)
        for name, numbers in (counts or {}).items():
            if not isinstance(numbers, list | tuple):
                raise _refuse(name, numbers, "a list of whole numbers")
            for number in numbers:
                check_whole(name, number, 2)

    # Steps ------------------------------------------------------------------------------------------------------------

    def match(
        self, model_a: nn.Module, model_b: nn.Module, options: Mapping[str, Mapping[str, Any]] | None = None
    ) -> dict[str, Matching]:
        """The permutations of every matcher asked for, each proved to leave B's outputs unchanged.

        Args:
            options: {matcher: its options}.
        """
        options = options or {}
        return {name: self.match_by(name, model_a, model_b, **options.get(name, {})) for name in self.matchers}

    def match_by(
        self, name: str, model_a: nn.Module, model_b: nn.Module, *, progress: bool = True, **options
    ) -> Matching:
        """The permutations of one matcher, proved to leave B's outputs unchanged."""
        found = matching.match(
            model_a, model_b, self.groups, name, device=self.device, progress=progress,
            batches=self.match_batches if matching.MATCHERS[name].images else None, **options,
        )  # fmt: skip
        symmetry.prove(model_b, self.groups, models.example(self.model), found)
        return found

    def correlation(self, model_a: nn.Module, model_b: nn.Module, matchings: Mapping[str, Matching]) -> Matching:
        """The activation matching, whose similarity tells how alike any matching's units are."""
        found = matchings.get("activation")
        if found is None or found.options.get("similarity", "correlation") != "correlation":
            found = matching.match(
                model_a, model_b, self.groups, "activation", batches=self.match_batches, device=self.device
            )
        return found

    def save_aligned(self, path: str, model_b: nn.Module, matchings: Mapping[str, Matching]) -> Path:
        """Saves B, permuted by the last of `matchings`, as a checkpoint; returns its path."""
        name, found = list(matchings.items())[-1]
        state = symmetry.permute(models.state_of(model_b), self.groups, found)
        target = paths.target(path, "")
        sidecar = {"dataset": self.dataset.name} | models.read_sidecar(self.checkpoints["b"]) | {"aligned_by": name}
        models.save_checkpoint(target, state, sidecar)
        return target

    def parents(self, model_a: nn.Module, model_b: nn.Module) -> dict[str, dict[str, float | None]]:
        """Accuracy and loss of the two networks as they are."""
        return {
            side: fusion.measure(self.build(), model.state_dict(), self.test, self.train, device=self.device)
            for side, model in (("a", model_a), ("b", model_b))
        }

    def check_matcher(self, name: str) -> None:
        """Raises InputError when the architecture cannot take the matcher."""
        matching.check_network(name, self.build(), self.groups)

    def check_correction(self, name: str) -> None:
        """Raises InputError when the architecture cannot take the correction."""
        fusion.check_network(name, self.build())

    def applicable(self) -> tuple[list[str], list[str]]:
        """The matchers and corrections asked for that this architecture can take; says which it cannot."""
        found: tuple[list[str], list[str]] = ([], [])
        checks = ((self.matchers, self.check_matcher), (self.corrections, self.check_correction))
        for (names, check_one), taken in zip(checks, found, strict=True):
            for name in names:
                try:
                    check_one(name)
                    taken.append(name)
                except InputError as error:
                    print(f"left out: {error}")
        return found

    def check_held_out(self, count: int) -> None:
        """Raises InputError when matching or correcting uses some of the last `count` training images, too."""
        check_whole("held_out_images", count, 1)
        images = len(self.dataset.train)
        if count + max(self.match_images, self.correct_images) > images:
            raise InputError(
                f"held_out_images {count} of {images} training images overlap those used to match or correct"
            )

    def held_out(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """The last `count` training images, for choices that must not see the test set."""
        self.check_held_out(count)
        split = self.dataset.train
        split = split.subset(range(len(split) - count, len(split)))
        return list(loaders.MemoryLoader(split, BATCH, normalise=models.normalisation(self.model), device=self.device))

    def curves(
        self,
        model_a: nn.Module,
        model_b: nn.Module,
        matchings: Mapping[str, Matching],
        parents: Mapping[str, Mapping],
        held_out: list[tuple[Tensor, Tensor]] | None = None,
    ) -> list[dict[str, Any]]:
        """Every matcher with every correction along the alphas, as the record's "curves".

        Args:
            held_out: training images on which each curve's best alpha is chosen, if given.
        """
        entries = []
        for found in matchings.values():
            aligned = symmetry.permute(model_b.state_dict(), self.groups, found)
            for name in self.corrections:
                looks = fusion.CORRECTIONS[name].images
                curve = fusion.curve(
                    self.build().to(self.device), model_a.state_dict(), aligned, self.alphas, parents=parents,
                    groups=self.groups, test=self.test, train=self.train, correction=name, device=self.device,
                    batches=self.correct_batches(name) if looks else None, label=f"{found.matcher} + {name}",
                    keep=self.alphas if held_out else (),
                )  # fmt: skip
                used = {"match": matching.MATCHERS[found.matcher].images, "correct": looks}
                extra: dict[str, Any] = {
                    "images": {key: self.settings[f"{key}_images"] * flag for key, flag in used.items()}
                }
                if held_out:
                    extra |= {"best": self._best(curve, held_out), "share": curve.share()}
                entries.append(
                    curve_entry(
                        found, name, curve.points, curve.barrier, correct_seconds=curve.correct_seconds, **extra
                    )
                )
        return entries

    def _best(self, curve: fusion.Curve, held_out: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
        model = self.build()
        scores = {
            alpha: fusion.measure(model, state, held_out, device=self.device)["test_accuracy"]
            for alpha, state in curve.states.items()
        }
        alpha = max(scores, key=scores.__getitem__)
        point = next(point for point in curve.points if point["alpha"] == alpha)
        chosen = {key: point[key] for key in ("test_accuracy", "test_loss")}
        return {"alpha": alpha, "held_out_accuracy": scores[alpha], **chosen}

    def references(
        self, model_a: nn.Module, model_b: nn.Module, parents: Mapping, held_out: list[tuple[Tensor, Tensor]]
    ) -> dict[str, dict[str, float]]:
        """What a fused network is compared with: the ensemble of both (not one network), and the control that fuses
        nothing, the parent that is better on the held-out images."""
        scores = {
            side: models.evaluate(model, held_out, device=self.device)[0]
            for side, model in (("a", model_a), ("b", model_b))
        }
        better = parents[max(scores, key=scores.__getitem__)]
        return {
            "ensemble": fusion.ensemble(model_a, model_b, self.test, device=self.device),
            "one_parent": {key: better[key] for key in ("test_accuracy", "test_loss")},
        }

    def bn_study(
        self, model_a: nn.Module, model_b: nn.Module, matchings: Mapping[str, Matching], counts: Iterable[int]
    ) -> list[dict[str, Any]]:
        """Accuracy at the midpoint after a BatchNorm reset on so many images, for each matching; 0 is no reset.
        Empty for a network without BatchNorm, and where no count is asked for."""
        counts = sorted({min(count, len(self.dataset.train)) for count in counts})
        if self.norm is None or not counts:
            return []
        rows, model = [], self.build().to(self.device)
        counts = [0, *counts]
        for found in matchings.values():
            aligned = symmetry.permute(model_b.state_dict(), self.groups, found)
            for count in tqdm(counts, desc=f"reset after {found.matcher}", unit="count", mininterval=1):
                fused = fusion.correct(
                    model, model_a.state_dict(), aligned, 0.5, "bn_reset" if count else "none", groups=self.groups,
                    batches=self.correct_batches(count=count) if count else None, device=self.device, progress=False,
                )  # fmt: skip
                accuracy = fusion.measure(model, fused, self.test, device=self.device)["test_accuracy"]
                rows.append({"matcher": found.matcher, "images": count, "test_accuracy": accuracy, "alpha": 0.5})
        return rows

    def record(self, parents: Mapping, curves: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
        """The run record, checked, not yet written."""
        used = {
            "match": self.match_images if any(matching.MATCHERS[m].images for m in self.matchers) else 0,
            "correct": self.correct_images if any(fusion.CORRECTIONS[c].images for c in self.corrections) else 0,
        }
        count = len(self.dataset.train)
        checkpoints, seeds = {}, {"match": 0}
        for side in ("a", "b"):
            path = self.checkpoints[side]
            made = models.read_sidecar(path)
            told = {name: made[name] for name in ("spec", "dataset", "images") if name in made}
            checkpoints[side] = {"file": portable(path), "sha256": paths.file_sha256(path)} | told
            seeds[side] = made.get("spec", {}).get("seed")
        return run_record.record(
            experiment=self.experiment,
            preset=self.preset,
            dataset=self.dataset.name,
            model=self.architecture,
            seeds=seeds,
            checkpoints=checkpoints,
            parents=parents,
            images={"train": count, "test": len(self.dataset.test)} | {k: min(v, count) for k, v in used.items()},
            curves=curves,
            provenance=origin.provenance(self.given, self.dataset, self.device, self.started),
            **extra,
        )


def _check_sidecar(run: Run, side: str, made: Mapping[str, Any]) -> None:
    """Raises InputError where a checkpoint says that it is of another architecture than the run's; prints a line where
    it was trained on other data than it is measured on."""
    spec, who = made.get("spec", {}), f"network {side.upper()} ({run.checkpoints[side].name})"
    for name, wanted in run.architecture.items():
        name = "model" if name == "name" else name
        if name in spec and spec[name] != wanted:
            raise InputError(f"{who} was trained with {name} {spec[name]}, this run has {wanted}; accepted: one {name}")
    learnt, here = made.get("dataset"), run.dataset.name
    if learnt and learnt != here:
        inside = loaders.SOURCES[here].part_of == learnt
        print(f"{who} was trained on {learnt}" + (f", whose training images hold all of {here}" if inside else ""))


def begin(
    experiment: str,
    model: str,
    parameters: Mapping[str, Any],
    *,
    presets: Mapping[str, Mapping[str, Any]],
    norm: str | None = None,
    extra: Iterable[str] = (),
    lenient: bool = False,
    writes: bool = True,
) -> Run:
    """Checks a notebook's parameters, fills in its preset, opens the data set and any checkpoints.

    Args:
        parameters: at least `PARAMETERS` by name (a notebook passes globals()); None is filled from the preset.
        extra: names of further parameters, to be checked by the notebook, filled and recorded like the others.
        lenient: accept matchers and corrections that the architecture cannot take; see `Run.applicable`.
        presets: {"quick": {parameter: value}, "paper": …}; a value may be {data set: value}.
        writes: the run is to leave a record and figures, so that their places have to be writable.

    Raises:
        InputError: in one line, before anything is trained or written.
    """
    started = datetime.now(UTC)
    given = {name: parameters[name] for name in (*PARAMETERS, *extra)}
    check(given)
    device = loaders.pick_device(given["device"])
    preset = given["preset"]
    if preset == "auto":
        preset = "paper" if device.type == "cuda" else "quick"
    if given["loader"] == "ffcv":
        from ..loaders import ffcv  # noqa: F401 (raises an InputError with the way to install it)
    paths_given = {side: given[f"checkpoint_{side}"] for side in ("a", "b")}
    checkpoints = {side: models.find_checkpoint(name) for side, name in paths_given.items() if name}
    dataset = models.open_dataset(given["dataset"], model)
    settings = dict(given)
    for name, value in presets[preset].items():
        if settings.get(name) is None:
            if isinstance(value, Mapping) and dataset.name not in value:
                raise InputError(
                    f"{name} has no preset on {dataset.name}; accepted: give {name}, or one of {', '.join(value)}"
                )
            settings[name] = value[dataset.name] if isinstance(value, Mapping) else value
    if checkpoints and given["width"] is None:
        # A checkpoint that says its width need not be told it.
        said = {models.read_sidecar(path).get("spec", {}).get("width") for path in checkpoints.values()} - {None}
        settings["width"] = said.pop() if len(said) == 1 else settings["width"]
    dataset = dataclasses.replace(
        dataset, train=dataset.train.head(given["limit_train"]), test=dataset.test.head(given["limit_test"])
    )
    if settings.get("held_out") and settings["held_out"] + max(
        settings["match_images"], settings["correct_images"]
    ) > len(dataset.train):
        raise _refuse(
            "held_out", settings["held_out"],
            f"at most what match_images and correct_images leave of {len(dataset.train)} training images",
        )  # fmt: skip
    run = Run(
        experiment, model, norm, given, settings, preset, dataset, device, started,
        paths.target(given["results_path"], paths.LOCAL / f"{experiment}.json"),
        paths.target(given["figures_dir"], paths.FIGURES / "local"),
        checkpoints,
    )  # fmt: skip
    if writes:
        paths.check_writable("results_path", run.results_path)
        paths.check_writable("figures_dir", run.figures_dir, folder=True)
    if given.get("save_aligned"):
        aligned = paths.target(given["save_aligned"], "")
        paths.check_writable("save_aligned", aligned)
        if aligned.with_suffix(".json") == run.results_path:
            raise _refuse("save_aligned", given["save_aligned"], "another name than that of the record")
    states = {}
    for side, path in checkpoints.items():
        _check_sidecar(run, side, models.read_sidecar(path))
        states[side] = models.read_state(path)
        models.load_state(run._unmerged(), states[side], str(path))
    run._check_distinct(states)
    if not lenient:
        for name in given["matchers"]:
            run.check_matcher(name)
        for name in given["corrections"]:
            run.check_correction(name)
    return run
