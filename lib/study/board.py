"""The leaderboard: which pairs meet, and one record for each (notebooks/leaderboard.ipynb drives it)."""

from collections.abc import Mapping
from typing import Any

from .. import models, paths
from ..checks import InputError, check_injected
from ..fusion import CONTROLS, CORRECTIONS
from ..matching import MATCHERS
from ..records import matching_arrays, read_record, recorded, write_record
from .places import places
from .run import Run, begin

# What a leaderboard leaves to the checkpoints or does not vary.
FIXED = {
    "preset": "quick", "seed_a": 0, "seed_b": 1, "epochs": None, "width": None, "loader": "memory", "limit_train": 0,
    "evaluate_train": False, "results_path": "", "figures_dir": "", "held_out": 0,
}  # fmt: skip
SHARED = (
    "matchers", "corrections", "controls", "alphas", "device", "limit_test", "match_images", "correct_images",
    "match_seed",
)  # fmt: skip


def pairs() -> dict[str, dict[str, Any]]:
    """{name: sidecar of network A} of the shipped pairs of models that are known here. A pair is named by its first
    network, such as simplenet-s0, whose partner is simplenet-s1."""
    sidecars = {}
    for path in paths.CHECKPOINTS.glob("*-s*.safetensors"):
        kind, _, seed = path.stem.rpartition("-s")
        if seed.isdecimal() and int(seed) % 2 == 0 and path.with_name(f"{partner(path.stem)}.safetensors").is_file():
            sidecars[kind, int(seed)] = models.read_sidecar(path)
    return {
        f"{kind}-s{seed}": sidecar
        for (kind, seed), sidecar in sorted(sidecars.items())
        if sidecar.get("spec", {}).get("model") in models.ARCHITECTURES
    }


def partner(name: str) -> str:
    """The name of a pair's second network."""
    kind, _, seed = name.rpartition("-s")
    return f"{kind}-s{int(seed) + 1}"


def thirds(pair: str) -> list[str]:
    """The names of the other shipped networks of a pair's architecture that were trained on its data set."""
    sidecars = {path.stem: models.read_sidecar(path) for path in sorted(paths.CHECKPOINTS.glob("*-s*.safetensors"))}
    alike = {name: _kind(sidecar) for name, sidecar in sidecars.items() if name not in (pair, partner(pair))}
    return [name for name, kind in alike.items() if kind == _kind(sidecars[pair])]


def _kind(sidecar: Mapping[str, Any]) -> list[Any]:
    spec = sidecar.get("spec", {})
    return [sidecar.get("dataset"), *(spec.get(field) for field in ("model", "width", "norm", "options"))]


def open_pairs(parameters: Mapping[str, Any]) -> dict[str, Run]:
    """The runs of all pairs asked for, by the stem of their record, everything checked and opened.

    Args:
        parameters: those of the notebook's parameters cell, by name.

    Raises:
        InputError: in one line, before anything is measured.
    """
    check_injected(parameters)
    runs: dict[str, Run] = {}
    shipped = pairs()
    kinds = list(dict.fromkeys(name.rpartition("-s")[0] for name in shipped))
    all_kinds = parameters["pairs"] == ["all"]
    every = {"pairs": kinds, "matchers": list(MATCHERS), "corrections": list(CORRECTIONS), "controls": list(CONTROLS)}
    parameters = dict(parameters) | {name: all_ for name, all_ in every.items() if parameters[name] == ["all"]}
    if 0.5 not in parameters["alphas"]:
        raise InputError(f"alphas {parameters['alphas']!r} is not accepted; accepted: a list with 0.5, where all meet")
    names = (*SHARED, "dataset", "held_out_images", "pairs", "seeds", "results_dir", "figures_dir")
    record, figures = places(
        "leaderboard", {name: parameters[name] for name in names}, several=("pairs", "seeds", "results_dir")
    )
    place = paths.target(parameters["results_dir"], record.parent)
    for kind in parameters["pairs"]:
        names = []
        for seed in parameters["seeds"]:
            name = f"{kind}-s{seed}"
            if (sidecar := shipped.get(name)) is None:
                continue
            given = {name: parameters[name] for name in (*SHARED, "held_out_images")} | FIXED
            given |= {"checkpoint_a": name, "checkpoint_b": partner(name)}
            spec = sidecar["spec"]
            given["dataset"] = sidecar["dataset"] if parameters["dataset"] == "auto" else parameters["dataset"]
            given |= {"results_path": str(place / f"leaderboard_{kind}-s{seed}.json"), "figures_dir": str(figures)}
            presets = {"quick": {"width": spec["width"]}}
            run = begin(
                "leaderboard", spec["model"], given, presets=presets, norm=spec["norm"], lenient=True,
                extra=("held_out_images",),
            )  # fmt: skip
            run.check_held_out("held_out_images", 1)
            names.append(name)
            run.leave_out_inapplicable()
            if run.settings.matchers and run.settings.corrections:
                runs[run.results_path.stem] = run
        if not names and all_kinds:
            print(f"left out: {kind}, no pair of seeds {parameters['seeds']} is shipped")
        elif not names:
            if kind not in kinds:
                raise InputError(f"no shipped pair '{kind}'; accepted: {', '.join(kinds) or 'none'}")
            seeds = ", ".join(name.removeprefix(f"{kind}-s") for name in shipped if name.startswith(f"{kind}-s"))
            raise InputError(f"seeds {parameters['seeds']}: {kind} has no such pair; accepted: {seeds}")
    return runs


def measured(stem: str, run: Run) -> dict[str, Any]:
    """The record of one pair: every applicable matcher with every applicable correction, and every applicable control.
    Written when it is new; one that is there, of the same checkpoints and parameters, is read instead."""
    if run.results_path.is_file():
        old = read_record(run.results_path)
        same = old["provenance"]["parameters"] == recorded(run.given)
        same = same and old["provenance"]["dataset_sha256"] == run.dataset.sha256
        if same and all(old["checkpoints"][side]["sha256"] == run.checkpoints[side].sha256 for side in ("a", "b")):
            print(f"{stem}: measured already")
            return old
    print(f"{stem}", flush=True)
    networks = run.open_pair()
    parents, held_out = run.parents(networks), run.held_out("held_out_images")
    aligned = run.align(networks, run.match(networks))
    curves = run.curves(aligned, parents, held_out)
    record = run.record(parents, curves, controls=run.controls(networks, parents, held_out) or None)
    write_record(run.results_path, record, matching_arrays(*(pair.maps[1] for pair in aligned.values())))
    return record
