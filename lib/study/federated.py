"""What notebooks/federated.ipynb does: check its parameters, run every seed, and make the record."""

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from .. import loaders, models, rounds
from ..checks import InputError, check_choice, check_injected, check_whole
from ..records import provenance, record, write_record
from .parameters import methods, refusal
from .places import places

PARAMETERS = (
    "dataset", "model", "width", "norm", "clients", "split", "rounds", "epochs", "batch_size", "lr", "clip", "start",
    "fraction", "newcomers", "join", "stragglers", "late", "servers", "controls", "server_images", "seeds",
    "limit_train", "limit_test", "device", "results_path", "figures_dir",
)  # fmt: skip
WIDTHS = {"mlp": 0.25, "simplenet": 1.0, "vgg11": 0.125}
MOMENTUM = 0.9


@dataclasses.dataclass
class Run:
    """A run of the notebook: its federations, one a seed, and its servers as they are recorded."""

    given: dict[str, Any]
    servers: list[str]
    controls: bool
    dataset: loaders.Dataset
    federations: list[rounds.Federation]
    device: torch.device
    started: datetime
    results_path: Path
    figures_dir: Path

    @property
    def setting(self) -> rounds.Setting:
        """Of the first seed."""
        return self.federations[0].setting

    def rows(self) -> list[dict[str, Any]]:
        """Every round of every server and control, for every seed."""
        return [
            row | {"seed": federation.setting.seed}
            for federation in self.federations
            for row in rounds.simulate(federation, self.servers, controls=self.controls)
        ]

    def record(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The record, checked, not yet written."""
        setting = self.setting
        clients = [{"seed": each.setting.seed, "class_counts": each.counts.tolist()} for each in self.federations]
        return record(
            experiment="federated", preset="quick", dataset=self.dataset.name, rows=rows, clients=clients,
            model={"name": setting.model, "width": float(setting.width), "norm": setting.norm},
            setting=setting.as_dict(), images={"test": len(self.dataset.test), "server": setting.server_images},
            provenance=provenance(self.given, self.dataset, self.device, self.started),
        )  # fmt: skip

    def write(self, made: Mapping[str, Any]) -> Path:
        """Writes the record, then removes what the rounds left for a run that was killed."""
        path = write_record(self.results_path, made)
        for federation in self.federations:
            rounds.forget(federation, self.servers)
        return path


def begin(parameters: Mapping[str, Any]) -> Run:
    """Checks the notebook's parameters and opens the data set.

    Args:
        parameters: at least `PARAMETERS` by name (the notebook passes globals()).

    Raises:
        InputError: in one line, before anything is trained or written.
    """
    started = datetime.now(UTC)
    check_injected(parameters)
    given = {name: parameters[name] for name in PARAMETERS}
    check_choice("model", given["model"], models.ARCHITECTURES)
    servers = methods("servers", given["servers"], "server", rounds.SERVERS)
    for name in ("controls", "late"):
        if not isinstance(given[name], bool):
            raise refusal(name, given[name], "true, false")
    seeds = given["seeds"]
    if not isinstance(seeds, list | tuple) or not seeds or len(set(seeds)) < len(seeds):
        raise refusal("seeds", seeds, "a list of whole numbers, without repeats")
    for name, least in {"epochs": 1, "batch_size": 1, "limit_train": 0, "limit_test": 0}.items():
        check_whole(name, given[name], least)
    device = loaders.pick_device(given["device"])
    architecture = models.ARCHITECTURES[given["model"]]
    width = WIDTHS.get(given["model"], 1.0) if given["width"] is None else given["width"]
    norm = given["norm"]
    if norm == "auto":
        norm = "batch" if "batch" in architecture.norms and given["model"] != "mlp" else None
    norm = None if norm == "none" else norm
    recipe = models.Recipe(
        epochs=given["epochs"], batch_size=given["batch_size"], lr=given["lr"], momentum=MOMENTUM, weight_decay=0.0,
        augment=architecture.augment, schedule="constant", clip=given["clip"],
    )  # fmt: skip
    same = ("model", "clients", "split", "rounds", "start", "fraction", "newcomers", "join", "stragglers", "late",
            "server_images", "limit_train")  # fmt: skip
    settings = [
        rounds.Setting(
            recipe=recipe, width=width, norm=norm, seed=seed, **{name: given[name] for name in same}
        )
        for seed in seeds
    ]  # fmt: skip
    for server in servers:
        rounds.check_server(server, given["server_images"])
    dataset = models.open_dataset(given["dataset"], given["model"])
    results_path, figures_dir = places("federated", given, dataset.name)
    dataset = dataclasses.replace(dataset, test=dataset.test.head(given["limit_test"]))
    if len(dataset.train) <= given["server_images"]:
        raise InputError(f"server_images {given['server_images']} are all of {dataset.name}; accepted: fewer")
    federations = [rounds.Federation(setting, dataset, device) for setting in settings]
    for server in servers:
        rounds.check_matcher(server, federations[0])
    return Run(given, servers, given["controls"], dataset, federations, device, started, results_path, figures_dir)
