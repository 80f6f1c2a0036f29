"""What every experiment notebook does alike: check its parameters, open data and networks, match, align, measure,
record.

A notebook calls `begin` in its first code cell, so that bad input fails in a second, before anything is trained;
the steps after it are methods of the `Run` that it returns.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .. import fusion, loaders, matching, models, paths, symmetry
from ..checks import InputError, check_choice, check_injected, check_whole
from ..fusion import Aligned
from ..matching import Matching
from ..models import Checkpoint
from ..progress import tqdm
from ..records import curve_entry, origin, portable, run_record
from ..symmetry import Groups
from .parameters import PARAMETERS, check, refusal
from .places import places

SIDES = ("a", "b")
WEAK = 0.5  # accuracy below which a network that few images have trained is said to know little
CHOICE = 5000  # images by which is chosen where no number is given


@dataclasses.dataclass
class Run:
    """One run of an experiment on one pair, or on a third network beside it (`open_third`): its data and networks, and
    its checked parameters with the preset's filled in (`settings`). `begin` makes it; `study.many` has one on any
    number. `checkpoints` are in the order of the networks."""

    experiment: str
    model: str
    norm: str | None
    given: dict[str, Any]
    settings: SimpleNamespace
    preset: str
    dataset: loaders.Dataset
    device: torch.device
    started: datetime
    results_path: Path
    figures_dir: Path
    checkpoints: dict[str, Checkpoint] = dataclasses.field(default_factory=dict)
    _images: dict[tuple[int, bool], Iterable] = dataclasses.field(default_factory=dict, repr=False)
    _networks: dict[str, nn.Module] = dataclasses.field(default_factory=dict, repr=False)
    # Of the ensemble, from `parents`: its measures, and its log-probabilities (N, classes) on the test images.
    ensemble: tuple[dict[str, float | None], Tensor] | None = dataclasses.field(default=None, repr=False)

    @property
    def architecture(self) -> dict[str, Any]:
        """The record's "model"."""
        found = {"name": self.model, "width": float(self.settings.width), "norm": self.norm}
        return found | ({"options": self.options} if self.options else {})

    @property
    def options(self) -> dict[str, Any]:
        """Further arguments of the architecture's constructor, as its checkpoints say: those of `models.Spec`."""
        return next((checkpoint.spec.get("options", {}) for checkpoint in self.checkpoints.values()), {})

    # Networks ---------------------------------------------------------------------------------------------------------

    @cached_property
    def template(self) -> nn.Module:
        """A fresh network of the run's architecture, its consecutive linear layers merged where the run asks for it;
        only its structure counts."""
        return self._merged(self._unmerged())

    def _merged(self, network: nn.Module) -> nn.Module:
        return models.merge_linear(network) if getattr(self.settings, "merge_linear", False) else network

    def _unmerged(self, seed: int = 0) -> nn.Module:
        return models.build(self.model, width=self.settings.width, norm=self.norm, seed=seed, **self.options)

    def _network(self, side: str) -> nn.Module:
        """The network of a checkpoint, as it was trained; built once."""
        if side not in self._networks:
            checkpoint = self.checkpoints[side]
            self._networks[side] = models.load_state(self._unmerged(), checkpoint.state, str(checkpoint.path))
        return self._networks[side]

    @cached_property
    def groups(self) -> Groups:
        """The permutation groups of the architecture, traced and proved with random permutations."""
        return symmetry.proved(self.template, models.example(self.model))

    def open_pair(self, recipe: models.Recipe | None = None, **skew) -> list[nn.Module]:
        """Networks A and B: from checkpoints where given, else trained by `recipe` (unless they are there already).

        Args:
            skew: {"a": …, "b": …} of further fields of `models.Spec`, such as the classes each network sees.
        """
        settings = self.settings
        specs = {
            side: models.Spec(
                self.model, getattr(settings, f"seed_{side}"), recipe, settings.width, self.norm,
                held_out=settings.held_out, options=self.options, **skew.get(side, {}),
            )
            for side in SIDES
            if side not in self.checkpoints
        }  # fmt: skip
        if len(specs) == 2 and specs["a"] == specs["b"]:
            raise InputError(f"A and B would be one network, both of seed {settings.seed_a}; accepted: two seeds")
        for side, spec in specs.items():
            self.checkpoints[side] = models.trained(
                spec, self.dataset, loader=settings.loader, device=self.device, label=f"network {side.upper()}"
            )
        self.checkpoints = dict(sorted(self.checkpoints.items()))
        self._check_distinct()
        return [self._merged(self._network(side)).to(self.device) for side in SIDES]

    def open_third(self, name: str) -> nn.Module:
        """Network C beside A and B: a checkpoint, by path or by the name of a shipped one.

        Raises:
            InputError: there is none, it is of another architecture, or is A or B again.
        """
        self.checkpoints["c"] = models.read_checkpoint(models.find_checkpoint(name))
        _check_sidecar(self, "c")
        self._check_distinct()
        return self._merged(self._network("c")).to(self.device)

    def _check_distinct(self) -> None:
        """Raises InputError where two networks are there and are the same: no pair, whatever the barrier says."""
        for one, two in itertools.combinations(self.checkpoints, 2):
            a, b = (self._network(side).state_dict() for side in (one, two))
            if all(torch.equal(tensor, b[name]) for name, tensor in a.items()):
                files = " and ".join(self.checkpoints[side].path.name for side in (one, two))
                raise InputError(f"{one.upper()} and {two.upper()} are the same network ({files}); accepted: others")

    # Images -----------------------------------------------------------------------------------------------------------

    def _batches(self, split: loaders.Split, augment: bool = False) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        normalise = models.normalisation(self.model)
        batches = loaders.MemoryLoader(
            split, loaders.BATCH, normalise=normalise, device=self.device, augment=augment, generator=generator
        )
        return list(batches) if len(split) <= 10_000 else batches

    @cached_property
    def test(self) -> list[tuple[Tensor, Tensor]]:
        """The test set, read and normalised once."""
        return self._batches(self.dataset.test)

    @cached_property
    def train(self) -> Iterable[tuple[Tensor, Tensor]] | None:
        """The training set as it is, where evaluate_train asks for it, else None."""
        return self._batches(self.dataset.train) if self.settings.evaluate_train else None

    @cached_property
    def match_batches(self) -> list[tuple[Tensor, Tensor]]:
        """The first match_images training images, as they are."""
        return self._batches(self.dataset.train.head(self.settings.match_images))

    def correct_batches(self, correction: str, count: int | None = None) -> list[tuple[Tensor, Tensor]] | None:
        """The first correct_images (or `count`) training images for a correction, augmented as in training where it
        wants that and the model trains so; None for one that looks at none. Batches in memory are kept; others draw
        their augmentation as they go, so each call starts them afresh."""
        name, _ = fusion.read_correction(correction)
        row = fusion.CORRECTIONS[name]
        if not row.images:
            return None
        key = count or self.settings.correct_images, row.augmented and models.ARCHITECTURES[self.model].augment
        batches = self._images.get(key) or self._batches(self.dataset.train.head(key[0]), augment=key[1])
        if isinstance(batches, list):
            self._images[key] = batches
        return batches

    def held_out(self, name: str = "held_out", most: int = CHOICE) -> list[tuple[Tensor, Tensor]]:
        """The last training images, of the count in parameter `name`, for choices that must not see the test set.

        Where that is 0 the last `most`, of a small set as many as matching and correcting leave, a tenth at least.
        Lines say so where a network was trained on them, and where matching or correcting looks at some, too.
        """
        split = self.dataset.train
        count = self.check_held_out(name, 0)
        left = max(0, len(split) - max(self.settings.match_images, self.settings.correct_images))
        count = count or min(most, max(left, len(split) // 10, 1))
        first = len(split) - count
        if count > left:
            print(
                f"choices are made on the last {count:,} training images, and matching or correcting looks at "
                f"{count - left:,} of them, too; fewer match_images and correct_images leave them out"
            )
        if seen := [side.upper() for side in self.checkpoints if self._has_seen(side, first)]:
            print(
                f"choices are made on the last {count:,} training images, which {' and '.join(seen)} saw in training "
                "(as far as is known); those trained with held_out have not seen them"
            )
        return list(self._batches(split.subset(range(first, len(split)))))

    def _has_seen(self, side: str, first: int) -> bool:
        """Whether a network was trained, or may have been, on training images from number `first` on."""
        sidecar, spec = self.checkpoints[side].sidecar, self.checkpoints[side].spec
        known = spec and "images" in sidecar and sidecar.get("dataset") == self.dataset.name
        return not known or sidecar["images"] - spec.get("held_out", 0) > first

    # Checks -----------------------------------------------------------------------------------------------------------

    def check_held_out(self, name: str, least: int) -> int:
        """The parameter `name`, a count of the last training images. Raises InputError when it is below `least`, or
        matching or correcting uses some of these images, too."""
        count = getattr(self.settings, name)
        check_whole(name, count, least)
        images, used = len(self.dataset.train), max(self.settings.match_images, self.settings.correct_images)
        if count and count + used > images:
            left = f"at most what match_images and correct_images leave of {images} training images"
            raise refusal(name, count, left)
        return count

    def check_matcher(self, name: str) -> None:
        """Raises InputError when the architecture cannot take the matcher."""
        matching.check_network(name, self.template, self.groups)

    def check_correction(self, name: str) -> None:
        """Raises InputError when the architecture cannot take the correction."""
        fusion.check_network(name, self.template, self.groups)

    def check_control(self, name: str) -> None:
        """Raises InputError when the architecture cannot take the control."""
        fusion.check_control(name, self.template, self.groups)

    def leave_out_inapplicable(self, *fields: str, say: bool = True) -> None:
        """Takes the matchers, corrections and controls that this architecture cannot take out of the settings, or those
        in some of these `fields` alone; says which."""
        checks = {"matchers": self.check_matcher, "corrections": self.check_correction, "controls": self.check_control}
        for field in fields or checks:
            taken = []
            for name in getattr(self.settings, field):
                try:
                    checks[field](name)
                    taken.append(name)
                except InputError as error:
                    if say:
                        print(f"left out: {error}")
            setattr(self.settings, field, taken)

    # Steps ------------------------------------------------------------------------------------------------------------

    def match(self, networks: Sequence[nn.Module]) -> dict[str, list[Matching]]:
        """The maps of every matcher asked for, one a network."""
        return {name: self.match_by(name, networks) for name in self.settings.matchers}

    def match_by(self, name: str, networks: Sequence[nn.Module], *, progress: bool = True) -> list[Matching]:
        """The maps of one matcher."""
        images = self.match_batches if matching.looks_at_images(name) else None
        return matching.match(
            networks, self.groups, name, images=images, device=self.device, seed=self.settings.match_seed,
            progress=progress,
        )  # fmt: skip

    def align(self, networks: Sequence[nn.Module], maps: Mapping[str, Sequence[Matching]]) -> dict[str, Aligned]:
        """The networks in one order, by matcher; each permutation is proved to leave the outputs unchanged."""
        return {name: fusion.align(networks, self.groups, each) for name, each in maps.items()}

    def correlation(self, networks: Sequence[nn.Module], maps: Mapping[str, Sequence[Matching]]) -> Matching:
        """The activation matching, whose similarity tells how alike any matching's units are."""
        return (maps.get("activation") or self.match_by("activation", networks))[1]

    def save_aligned(self, path: str, aligned: Mapping[str, Aligned]) -> Path:
        """Saves B in the order of the last matcher as a checkpoint; returns its path."""
        name, pair = list(aligned.items())[-1]
        target = paths.target(path, "")
        sidecar = {"dataset": self.dataset.name} | self.checkpoints["b"].sidecar | {"aligned_by": name}
        models.save_checkpoint(target, pair.states[1], sidecar)
        return target

    def parents(self, networks: Sequence[nn.Module]) -> dict[str, dict[str, float | None]]:
        """What the networks reach as they are; their `ensemble` is measured on the way."""
        parents, *ensemble = fusion.measure_parents(
            networks, self.test, self.train, names=list(self.checkpoints), device=self.device
        )
        self.ensemble = tuple(ensemble)
        if warning := self._too_weak(parents):
            print(warning)
        return parents

    def _too_weak(self, parents: Mapping[str, Mapping]) -> str | None:
        """A line where networks that were trained here, on images that a limit has left, know little."""
        limit = self.settings.limit_train
        here = [side for side in parents if not self.given.get(f"checkpoint_{side}")]
        weak = [side for side in here if parents[side]["test_accuracy"] < WEAK]
        if not limit or not weak or self.dataset.train.is_text:
            return None
        who = " and ".join(f"{side.upper()} {100 * parents[side]['test_accuracy']:.1f} %" for side in weak)
        return (
            f"trained too little: {who}; with limit_train {limit:,} this run shows that all works, not what fusing is "
            "worth (limit_train 0: all images)"
        )

    @property
    def against(self) -> Tensor | None:
        """The ensemble's log-probabilities (N, classes) on the test images, once the parents are measured."""
        return None if self.ensemble is None else self.ensemble[1]

    def looked_at(self, **looks: bool) -> dict[str, int]:
        """How many training images stand behind a "match" and a "correct" that `looks` at any: the parameter's, of a
        smaller set all that there are; else 0."""
        count = len(self.dataset.train)
        return {what: min(getattr(self.settings, f"{what}_images"), count) * look for what, look in looks.items()}

    def curves(
        self,
        aligned: Mapping[str, Aligned],
        parents: Mapping[str, Mapping],
        held_out: list[tuple[Tensor, Tensor]] | None = None,
    ) -> list[dict[str, Any]]:
        """Every matcher with every correction along the alphas, as the record's "curves".

        Args:
            held_out: training images on which each curve's best alpha is chosen, if given.
        """
        entries, alphas = [], self.settings.alphas
        for matcher, pair in aligned.items():
            for correction in self.settings.corrections:
                images = self.correct_batches(correction)
                curve = fusion.curve(
                    pair, alphas, parents=parents, test=self.test, train=self.train, correction=correction,
                    ensemble=self.against, images=images, device=self.device, label=f"{matcher} + {correction}",
                    keep=alphas if held_out else (),
                )  # fmt: skip
                used = self.looked_at(match=matching.looks_at_images(matcher), correct=images is not None)
                extra: dict[str, Any] = {"images": used}
                if held_out:
                    extra |= {"best": self._best(curve, held_out), "share": curve.parts()}
                entries.append(
                    curve_entry(
                        pair.maps[1], correction, curve.points, curve.barrier, correct_seconds=curve.correct_seconds,
                        options=fusion.read_correction(correction)[1], **extra,
                    )
                )  # fmt: skip
        return entries

    def _best(self, curve: fusion.Curve, held_out: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
        scores = {
            alpha: fusion.measure(self.template, state, held_out, device=self.device)["test_accuracy"]
            for alpha, state in curve.states.items()
        }
        alpha = max(scores, key=scores.__getitem__)
        point = next(point for point in curve.points if point["alpha"] == alpha)
        chosen = {key: point[key] for key in ("test_accuracy", "test_loss")}
        return {"alpha": alpha, "held_out_accuracy": scores[alpha], **chosen}

    def controls(
        self,
        networks: Sequence[nn.Module],
        parents: Mapping[str, Mapping],
        held_out: list[tuple[Tensor, Tensor]] | None = None,
        *,
        progress: bool = True,
    ) -> dict[str, dict[str, Any]]:
        """What the parents reach without being fused, and what other ways than matching make of them: every control
        asked for, as the record's "controls". They look at the images of a fit, the first correct_images as they are.

        Args:
            held_out: labelled images by which is chosen; by default `held_out()`, where a control chooses.
        """
        rows = {name: fusion.CONTROLS[fusion.read_control(name)[0]] for name in self.settings.controls}
        if held_out is None and any(row.chooses for row in rows.values()):
            held_out = self.held_out()
        one = self.checkpoints["a"]
        # each pair has its own untrained network, or n pairs would share one
        own = one.spec.get("seed", int(one.sha256[:8], 16))
        given = fusion.Parents(
            networks, self.groups, self.correct_batches("least_squares"), held_out,
            fresh=lambda seed: self._merged(self._unmerged(seed + own)), seed=self.settings.match_seed,
            device=self.device, progress=False,
        )  # fmt: skip
        entries = {}
        for name, row in tqdm(rows.items(), desc="controls", unit="control", disable=not progress, mininterval=1):
            made = fusion.control(name, given)
            entries[name] = self._measured(made.network, given.networks, parents)
            entries[name] |= {"seconds": made.seconds, "images": made.images, "info": made.info}
            if row.chooses:
                entries[name]["info"] |= {"held_out": sum(len(labels) for _, labels in held_out)}
        return entries

    def _measured(self, network: nn.Module, networks: Sequence[nn.Module], parents: Mapping) -> dict[str, Any]:
        """A control on the test images; what went over them already does not again."""
        side = next((side for side, own in zip(parents, networks, strict=True) if own is network), None)
        if side is not None:
            measures = parents[side]
        elif isinstance(network, fusion.Ensemble) and self.ensemble is not None:
            measures = self.ensemble[0]
        else:
            measures = fusion.measure(
                network, network.state_dict(), self.test, ensemble=self.against, device=self.device
            )
        return {name: value for name, value in measures.items() if name.startswith("test") and value is not None}

    def bn_study(self, aligned: Mapping[str, Aligned], counts: Iterable[int]) -> list[dict[str, Any]]:
        """Accuracy at the midpoint after a BatchNorm reset on so many images, for each matcher; 0 is no reset.
        Empty for a network without BatchNorm, and where no count is asked for."""
        counts = sorted({min(count, len(self.dataset.train)) for count in counts})
        if self.norm != "batch" or not counts:
            return []
        rows, counts = [], [0, *counts]
        for matcher, pair in aligned.items():
            for count in tqdm(counts, desc=f"reset after {matcher}", unit="count", mininterval=1):
                fused = fusion.correct(
                    pair, 0.5, "bn_reset" if count else "none", device=self.device, progress=False,
                    images=self.correct_batches("bn_reset", count) if count else None,
                )  # fmt: skip
                accuracy = fusion.measure(self.template, fused.state, self.test, device=self.device)["test_accuracy"]
                rows.append({"matcher": matcher, "images": count, "test_accuracy": accuracy, "alpha": 0.5})
        return rows

    def record(self, parents: Mapping, curves: list[dict[str, Any]] | None = None, **extra: Any) -> dict[str, Any]:
        """The run record, checked, not yet written: of its curves, or of `rows`."""
        settings = self.settings
        looks = {
            "match": any(matching.looks_at_images(name) for name in settings.matchers),
            "correct": any(fusion.CORRECTIONS[fusion.read_correction(n)[0]].images for n in settings.corrections)
            or any(fusion.CONTROLS[fusion.read_control(n)[0]].images for n in settings.controls),
        }
        checkpoints, seeds = {}, {"match": settings.match_seed}
        for side in parents:
            checkpoint = self.checkpoints[side]
            sidecar = {
                name: checkpoint.sidecar[name] for name in ("spec", "dataset", "images") if name in checkpoint.sidecar
            }
            checkpoints[side] = {"file": portable(checkpoint.path), "sha256": checkpoint.sha256} | sidecar
            seeds[side] = checkpoint.spec.get("seed")
        return run_record.record(
            experiment=self.experiment,
            preset=self.preset,
            dataset=self.dataset.name,
            model=self.architecture,
            seeds=seeds,
            checkpoints=checkpoints,
            parents=parents,
            images={"train": len(self.dataset.train), "test": len(self.dataset.test)} | self.looked_at(**looks),
            curves=curves,
            provenance=origin.provenance(self.given, self.dataset, self.device, self.started),
            **extra,
        )


def check_counts(name: str, numbers: object) -> None:
    """Raises InputError unless `numbers` is a list of whole numbers ≥ 2: counts of images."""
    if not isinstance(numbers, list | tuple):
        raise refusal(name, numbers, "a list of whole numbers")
    for number in numbers:
        check_whole(name, number, 2)


def _check_sidecar(run: Run, side: str) -> None:
    """Raises InputError where a checkpoint says that it is of another architecture than the run's; prints a line where
    it was trained on other data than it is measured on."""
    checkpoint = run.checkpoints[side]
    spec, who = checkpoint.spec, f"network {side.upper()} ({checkpoint.path.name})"
    for name, wanted in run.architecture.items():
        name = "model" if name == "name" else name
        if name in spec and spec[name] != wanted:
            raise InputError(f"{who} was trained with {name} {spec[name]}, this run has {wanted}; accepted: one {name}")
    if elsewhere := trained_elsewhere(checkpoint, run.dataset.name):
        print(f"{who} was {elsewhere}")


def trained_elsewhere(checkpoint: models.Checkpoint, measured: str) -> str:
    """What a network was trained on, and whether that holds the data set that it is `measured` on; "" where it is this
    one or the sidecar does not say."""
    learnt = checkpoint.sidecar.get("dataset")
    if not learnt or learnt == measured:
        return ""
    return f"trained on {learnt}" + f", whose training images hold all of {measured}" * checkpoint.has_seen(measured)


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
        lenient: accept matchers, corrections and controls that the architecture cannot take
            (`Run.leave_out_inapplicable`).
        presets: {"quick": {parameter: value}, "paper": …}; a value may be {data set: value}.
        writes: the run is to leave a record and figures, so that their places have to be writable.

    Raises:
        InputError: in one line, before anything is trained or written.
    """
    started = datetime.now(UTC)
    check_injected(parameters)
    given = {name: parameters[name] for name in (*PARAMETERS, *extra)}
    settings = check(given)
    device = loaders.pick_device(given["device"])
    preset = given["preset"]
    if preset == "auto":
        preset = "paper" if device.type == "cuda" else "quick"
    if given["loader"] == "ffcv":
        from ..loaders import ffcv  # noqa: F401 (raises an InputError with the way to install it)
    names = {side: given[f"checkpoint_{side}"] for side in SIDES}
    files = {side: models.find_checkpoint(name) for side, name in names.items() if name}
    dataset = models.open_dataset(given["dataset"], model)
    for name, value in presets[preset].items():
        if settings.get(name) is None:
            if isinstance(value, Mapping) and dataset.name not in value:
                raise InputError(
                    f"{name} has no preset on {dataset.name}; accepted: give {name}, or one of {', '.join(value)}"
                )
            settings[name] = value[dataset.name] if isinstance(value, Mapping) else value
    checkpoints = {side: models.read_checkpoint(path) for side, path in files.items()}
    if checkpoints and given["width"] is None:
        # A checkpoint that says its width need not be told it.
        widths = {checkpoint.spec.get("width") for checkpoint in checkpoints.values()} - {None}
        settings["width"] = widths.pop() if len(widths) == 1 else settings["width"]
    dataset = dataclasses.replace(
        dataset, train=dataset.train.head(given["limit_train"]), test=dataset.test.head(given["limit_test"])
    )
    run = Run(
        experiment, model, norm, given, SimpleNamespace(**settings), preset, dataset, device, started,
        *places(experiment, given, dataset.name, check=writes), checkpoints,
    )  # fmt: skip
    run.check_held_out("held_out", 0)
    if given.get("save_aligned"):
        aligned = paths.target(given["save_aligned"], "")
        paths.check_writable("save_aligned", aligned)
        if aligned.with_suffix(".json") == run.results_path:
            raise refusal("save_aligned", given["save_aligned"], "another name than that of the record")
    for side in checkpoints:
        _check_sidecar(run, side)
        run._network(side)
    run._check_distinct()
    if not lenient:
        for name in run.settings.matchers:
            run.check_matcher(name)
        for name in run.settings.corrections:
            run.check_correction(name)
        for name in run.settings.controls:
            run.check_control(name)
    return run


def open_one_model(
    parameters: Mapping[str, Any],
    names: Sequence[str],
    presets: Mapping[str, Mapping[str, Any]],
    known: Sequence[str],
    experiment: str,
    images: Sequence[str],
) -> dict[str, Any]:
    """What a `Run` of a notebook needs that takes its model as a parameter, "settings" as a dictionary.

    Args:
        parameters: at least those of `names` (the notebook passes globals()).
        presets: {"quick": {parameter: {model: value, or {data set: value}}}, "paper": …}, for those that are None.
        known: the models that the notebook takes.
        images: the parameters that say how many of the first training images are looked at.

    Raises:
        InputError: in one line, before anything is trained or written.
    """
    started = datetime.now(UTC)
    check_injected(parameters)
    given = {name: parameters[name] for name in names}
    check_choice("preset", given["preset"], ("quick", "paper", "auto"))
    check_choice("model", given["model"], known)
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
    for name in ("limit_train", "limit_test", "held_out", *images):
        check_whole(name, settings[name], 0)
    results_path, figures_dir = places(experiment, given, dataset.name)
    train = dataset.train.head(given["limit_train"])
    dataset = dataclasses.replace(dataset, train=train, test=dataset.test.head(given["limit_test"]))
    if settings["held_out"] > max(len(train) - max(settings[name] for name in images), 0):
        used = f"at most what {' and '.join(images)} leave of {len(train)} training images"
        raise refusal("held_out", settings["held_out"], used)
    return {
        "experiment": experiment, "model": given["model"], "given": given, "settings": settings, "preset": preset,
        "dataset": dataset, "device": device, "started": started, "results_path": results_path,
        "figures_dir": figures_dir,
    }  # fmt: skip
