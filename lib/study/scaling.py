"""How graph matching scales: planted recovery, time and memory against width, objective against accuracy.

Each function returns rows for a record of notebooks/graph_matching_scaling.ipynb; `paper.figures_scaling` draws them.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import fusion, loaders, matching, models, symmetry
from ..checks import InputError, check_choice
from ..matching import Peak
from ..progress import tqdm
from ..symmetry import Groups

Rows = list[dict[str, Any]]
# Solvers whose soft gradients with the exact kernel take O(n⁴): the inner-product kernel is theirs at any real size.
INNER = ("spectral_symmetric", "rrwm", "ipfp", "frank_wolfe")


def check(
    *, solvers: Iterable[str], scaling_solvers: Iterable[str], widths: Iterable[float], recovery_width: float,
    noises: Iterable[float], seeds: Iterable[int],
) -> None:  # fmt: skip
    """Raises InputError, in one line, unless there is something of each to study and all of it is accepted."""
    lists = {"solvers": solvers, "scaling_solvers": scaling_solvers, "widths": widths, "noises": noises, "seeds": seeds}
    for name, values in lists.items():
        if not isinstance(values, list | tuple) or not values:
            raise InputError(f"{name} {values!r} is not accepted; accepted: a list of at least one")
    for solver in (*solvers, *scaling_solvers):
        check_choice("solver", solver, matching.SOLVERS)
    for name, values in (("width", (*widths, recovery_width)), ("noise", noises)):
        for value in values:
            if not isinstance(value, int | float) or value < 0 or (name == "width" and value == 0):
                raise InputError(f"{name} {value!r} is not accepted; accepted: a positive number")


def planted(
    model: nn.Module, groups: Groups, noise: float, generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A permuted and noisy copy of a network, and the permutations that line it up again.

    Args:
        noise: σ of the Gaussian noise on each tensor, in standard deviations of that tensor.

    Returns:
        (state dict, {group: LongTensor (size,)}), the permutations moving the copy onto `model`.
    """
    noisy = {}
    for name, tensor in model.state_dict().items():
        spread = tensor.std(correction=0) if tensor.numel() > 1 else torch.zeros(())
        noisy[name] = tensor + noise * spread * torch.randn(tensor.shape, generator=generator)
    truth = groups.random(generator)
    return symmetry.act(noisy, groups, symmetry.inverse(truth)), truth


def dense_bytes(model: nn.Module, groups: Groups) -> int:
    """What the dense affinity matrix of two such networks would take in float32: 4·n⁴ bytes, with n the input
    channels and the outputs of every layer."""
    state = model.state_dict()
    weights = [state[layer.weight] for layer in groups.layers]
    n = weights[0].shape[1] + sum(weight.shape[0] for weight in weights)
    return 4 * n**4


def plant(
    model: str, width: float, noise: float, seed: int
) -> tuple[nn.Module, Groups, dict[str, Tensor], dict[str, Tensor]]:
    """(network, its groups, state of its noisy permuted copy, the permutation that undoes it): see `planted`.

    Its weights are PyTorch's default ones, drawn from `seed`, whatever the model itself starts training from."""
    network = models.build(model, width=width, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        for module in network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    groups = symmetry.trace(network, models.example(model))
    # Not the seed itself: noise from the numbers that the weights were made of would be correlated with them.
    state, truth = planted(network, groups, noise, torch.Generator().manual_seed(1_000_003 + seed))
    return network, groups, state, truth


def _solve(network: nn.Module, groups: Groups, state: Mapping[str, Tensor], solver: str):
    problem = matching.Problem(network.state_dict(), state, groups)
    options = {"kernel": "inner"} if solver in INNER else {}
    return matching.solve(problem, solver=solver, **options)


def recovered_share(truth: Mapping[str, Tensor], perms: Mapping[str, Tensor]) -> float:
    """The share of units whose place was found again."""
    right = sum(int((perms[name] == perm).sum()) for name, perm in truth.items())
    return right / sum(len(perm) for perm in truth.values())


def recovery_rows(
    networks: Iterable[tuple[str, float]], solvers: Iterable[str], noises: Iterable[float], seeds: Iterable[int]
) -> Rows:
    """The share of units that each solver finds again in a planted copy, for every network (model, width), noise and
    seed; random weights, without norms."""
    cases = [(m, w, n, s) for m, w in networks for n in noises for s in seeds]
    rows: Rows = []
    for model, width, noise, seed in tqdm(cases, desc="recovery", unit="plant", mininterval=1):
        network, groups, state, truth = plant(model, width, noise, seed)
        for solver in solvers:
            share = recovered_share(truth, _solve(network, groups, state, solver).perms)
            rows.append(
                {
                    "study": "recovery", "model": model, "width": width, "solver": solver, "noise": noise,
                    "recovered": share, "seed": seed,
                }
            )  # fmt: skip
    return rows


def scaling_rows(
    names: Iterable[str], widths: Iterable[float], solvers: Iterable[str], noise: float = 2.0, seed: int = 0
) -> Rows:
    """Seconds and extra peak memory of each solver against width, on planted copies; with what dense K would take."""
    cases = [(m, w, s) for m in names for w in widths for s in solvers]
    rows: Rows = []
    for model, width, solver in tqdm(cases, desc="scaling", unit="case", mininterval=1):
        network, groups, state, truth = plant(model, width, noise, seed)
        with Peak("cpu") as peak:
            start = time.perf_counter()
            solution = _solve(network, groups, state, solver)
            seconds = time.perf_counter() - start
        rows.append(
            {
                "study": "scaling", "model": model, "width": width, "solver": solver, "seconds": seconds,
                "peak_bytes": peak.bytes, "dense_bytes": dense_bytes(network, groups), "seed": seed, "noise": noise,
                "recovered": recovered_share(truth, solution.perms),
            }
        )  # fmt: skip
    return rows


def test_batches(dataset: loaders.Dataset, limit: int) -> list[tuple[Tensor, Tensor]]:
    """The first `limit` (0: all) test images for SimpleNet, as batches."""
    return list(loaders.MemoryLoader(dataset.test.head(limit), 250, normalise=models.normalisation("simplenet")))


def objective_rows(
    model_a: nn.Module, model_b: nn.Module, groups: Groups, test: Iterable, restarts: int, seed: int = 0
) -> Rows:
    """Objective (exact kernel) and accuracy of the fused midpoint for the default solver and for coordinate descents
    from the identity and from `restarts` random starts, on one trained pair."""
    states = model_a.state_dict(), model_b.state_dict()
    problem = matching.Problem(*states, groups)
    generator = torch.Generator().manual_seed(seed)
    solutions = [matching.solve(problem), matching.coordinate_descent(problem, kernel="exp")]
    for _ in range(restarts):
        start = groups.random(generator)
        solutions.append(matching.coordinate_descent(problem, kernel="exp", start=start, generator=generator))
    rows: Rows = []
    for solution in tqdm(solutions, desc="objective", unit="matching", mininterval=1):
        aligned = fusion.align([model_a, model_b], groups, [groups.identity(), solution.perms])
        fused = fusion.correct(aligned, 0.5, "none").state
        accuracy = fusion.measure(model_a.__class__(), fused, test)["test_accuracy"]
        rows.append(
            {
                "study": "objective",
                "solver": solution.solver,
                "objective": solution.objective,
                "test_accuracy": accuracy,
            }
        )
    return rows
