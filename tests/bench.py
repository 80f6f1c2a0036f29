"""`make bench`: every performance claim as a ratio against the published procedure or a peer, in one process.

Each section runs the same work both ways, prints what each finds and returns rows for the record; where permutations
must agree it asserts so. Slow peers run once, others three times (the median counts). Seconds are CPU seconds of one
thread, which other work on the machine lengthens less than those of the clock; read ratios all the same. Data where it
is at hand (FUSEBOOK_DATA), else random images. With all sections the record data/results/bench.json is written
(`--record PATH`: another one, of the sections that are run), of which `make figures` makes the tables of
figures/README.md. It says the load of the machine before and after: 0 is an idle one.
"""

import argparse
import copy
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pygmtools
import torch

from lib import fusion, loaders, matching, models, paths, records, symmetry
from lib.checks import InputError
from lib.matching import Problem, assign
from lib.study import scaling
from tests.oracles import layer_by_layer

Rows = list[dict[str, Any]]
torch.set_num_threads(1)  # here: a section's process imports this module anew


def timed(work: Callable, repeats: int = 3) -> tuple[object, float, int]:
    """(result, median CPU seconds, extra peak bytes of the first run)."""
    seconds, peak = [], 0
    for run in range(repeats):
        with matching.Peak("cpu") as memory:
            start = time.process_time()
            result = work()
            seconds.append(time.process_time() - start)
        peak = max(peak, memory.bytes or 0) if run == 0 else peak
    return result, statistics.median(seconds), peak


def apart(work: Callable, *given: Any) -> Any:
    """What `work` answers in a process of its own: in one that has grown before, memory that is used again does not
    show."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *given).result()


def told(
    work: str, method: tuple[str, float, int | None], peer: tuple[str, float, int | None] | None = None, **more: Any
) -> dict[str, Any]:
    """The record's row of one piece of work, printed: what did it, seconds and extra peak bytes (None: not measured);
    the same of what it is compared with."""
    row = {"study": "bench", "work": work, "method": method[0], "seconds": method[1], "peak_bytes": method[2]} | more
    line = f"  {work}: {method[0]} {method[1]:.3f} s"
    line += f", {method[2] / 1e6:.1f} MB" if method[2] is not None else ""
    if peer:
        row |= {"against": peer[0], "against_seconds": peer[1], "against_peak_bytes": peer[2]}
        line += f"; {peer[0]} {peer[1]:.3f} s" + (f", {peer[2] / 1e6:.1f} MB" if peer[2] is not None else "")
        line += f": {peer[1] / method[1]:.1f} × faster"
    print(line + "".join(f", {name} {value}" for name, value in more.items()), flush=True)
    return row


def spectral() -> Rows:
    """SimpleNet's spectral matching: dense K and pygmtools.sm against the matrix-free sweep."""
    pair = [models.build("simplenet", seed=seed) for seed in (0, 1)]
    groups = symmetry.trace(pair[0], models.example("simplenet"))
    states = [model.state_dict() for model in pair]

    def solve(solver: str) -> Callable:
        return lambda: matching.spectral(*states, groups, solver=solver)[0]

    solve("sweep")()
    lean, quick, small = timed(solve("sweep"))
    dense, slow, large = timed(solve("pygmtools"), repeats=1)
    assert all(torch.equal(dense[name], lean[name]) for name in groups), "the permutations differ"
    peer = "dense K + pygmtools.sm + pygmtools.hungarian", slow, large
    return [told("published spectral matching of SimpleNet, same permutations", ("sweep", quick, small), peer)]


def images(count: int) -> list[torch.Tensor]:
    try:
        dataset = models.open_dataset("cifar10-jpeg", "vgg11")
        batches = loaders.MemoryLoader(dataset.train.head(count), 500, normalise=loaders.CIFAR)
        return [x for x, _ in batches]
    except InputError:
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(500, 3, 32, 32, generator=generator) for _ in range(count // 500)]


def solvers() -> Rows:
    """pygmtools' general solvers on dense K against the same iterations without it."""
    network, groups, state, truth = scaling.plant("simplenet", 0.5, 2.0, 0)
    problem = Problem(network.state_dict(), state, groups)
    sizes = list(problem.sizes.values())
    n = sum(sizes)
    flat = torch.block_diag(*problem.flat().values())[None]
    peers = {
        "spectral_symmetric": lambda K: pygmtools.sm(K, n, n, backend="pytorch"),
        "rrwm": lambda K: pygmtools.rrwm(K, n, n, max_iter=50, backend="pytorch"),
        "ipfp": lambda K: pygmtools.ipfp(K[None], torch.tensor([n]), torch.tensor([n]), x0=flat, backend="pytorch")[0],
    }
    answer = []
    for name, peer in peers.items():

        def own(name: str = name) -> matching.Solution:  # kernel values are worked out anew, as the peer's are
            return matching.solve(Problem(network.state_dict(), state, groups), solver=name)

        ours, quick, small = timed(own)
        X, slow, large = timed(lambda peer=peer: peer(problem.affinity()).T, repeats=1)
        rows = zip(problem.sizes, X.split(sizes), strict=True)
        theirs = {group: assign(found.split(sizes, dim=1)[i]) for i, (group, found) in enumerate(rows)}
        scores = {
            f"{who}{what}": value
            for who, perms in (("", ours.perms), ("against_", theirs))
            for what, value in (
                ("objective", problem.objective(perms)),
                ("recovered", scaling.recovered_share(truth, perms)),
            )
        }
        work = f"{name} on SimpleNet ×1/2, planted permutation, noise of 2 standard deviations"
        answer.append(told(work, (name, quick, small), (f"pygmtools.{PEERS[name]}, dense K", slow, large), **scores))
    return answer


PEERS = {"spectral_symmetric": "sm", "rrwm": "rrwm", "ipfp": "ipfp"}


def shipped(name: str) -> torch.nn.Module:
    """A shipped network by name."""
    path = models.find_checkpoint(name)
    spec = models.read_sidecar(path)["spec"]
    model = models.build(spec["model"], width=spec["width"], norm=spec["norm"])
    return models.load_state(model, models.read_state(path), name)


def rebasin() -> Rows:
    """Weight matching against the package `rebasin` (PyPI) on shipped pairs: squared distance that is left between
    the weights of A and B, and whether B still computes what it did."""
    try:
        from rebasin import PermutationCoordinateDescent
    except ImportError:
        print("  rebasin is not installed: pip install -e '.[bench]'")
        return []
    answer = []
    for kind, architecture in (("mlp-w0.5", "mlp"), ("simplenet", "simplenet"), ("vgg11bn-w0.125", "vgg11")):
        a, b = shipped(f"{kind}-s0"), shipped(f"{kind}-s1")
        groups, x = symmetry.trace(a, models.example(architecture)), models.example(architecture)

        def peer(a=a, b=b, x=x) -> torch.nn.Module:
            moved = copy.deepcopy(b)
            descent = PermutationCoordinateDescent(a, moved, x)
            descent.calculate_permutations()
            descent.apply_permutations()
            return moved.eval()

        def own(a=a, b=b, groups=groups) -> torch.nn.Module:
            perms = matching.match([a, b], groups, "weight", progress=False)[1]
            return models.load_state(copy.deepcopy(b), symmetry.act(b.state_dict(), groups, perms))

        own()
        ours, quick, small = timed(own)
        theirs, slow, large = timed(peer, repeats=1)
        found = {}
        for who, moved in (("", ours), ("against_", theirs)):
            with torch.inference_mode():
                pairs = zip(a.parameters(), moved.parameters(), strict=True)
                found[f"{who}distance"] = sum(float((p - q).square().sum()) for p, q in pairs)
                found[f"{who}output_change"] = float((moved(x) - b(x)).abs().max())
        # what computes something else than B did is no permutation of it
        change = found["against_output_change"]
        peer = "rebasin 0.0.47" + (f", B's outputs change by {change:.1f}" if change > 1e-3 else "")
        answer.append(told(f"weight matching of {kind}", ("weight", quick, small), (peer, slow, large), **found))
    return answer


def activation() -> Rows:
    """VGG11-BN's activation matching: layer by layer, as published, against one pass."""
    pair = [shipped(f"vgg11bn-w0.25-s{seed}") for seed in (0, 1)]
    groups = symmetry.trace(pair[0], models.example("vgg11"))
    batches = images(2000)
    matching.match(pair, groups, "activation", images=batches[:1], progress=False)[1]
    found, quick, small = timed(lambda: matching.match(pair, groups, "activation", images=batches, progress=False)[1])
    expected, slow, large = timed(lambda: layer_by_layer(*pair, batches), repeats=1)
    # Units that are nearly alike may fall either way: what must agree is the correlation that is reached.
    reached, wanted = (
        sum(float(m[torch.arange(len(m)), perms[name]].sum()) for name, m in found.similarity.items())
        for perms in (found, expected)
    )
    assert math.isclose(reached, wanted, rel_tol=1e-6), f"correlation {wanted} layer by layer, {reached} in one pass"
    differing = sum(int((found[name] != perm).sum()) for name, perm in expected.items())
    work = "activation matching of VGG11-BN ×1/4 on 2,000 images, same correlation"
    both = ("all layers in one pass", quick, small), ("layer by layer, as published", slow, large)
    return [told(work, *both, units_apart=differing)]


def layout() -> Rows:
    """Training throughput on the CPU: channels_last against the default layout."""
    batch = images(500)[0]
    labels = torch.arange(len(batch)) % 10
    answer = []
    for width in (0.125, 0.25):
        results = {}
        for name, form in (("default", torch.contiguous_format), ("channels_last", torch.channels_last)):
            model = models.build("vgg11", width=width, norm="batch", seed=0).to(memory_format=form).train()
            x = batch.to(memory_format=form)

            def step(model=model, x=x) -> None:
                model.zero_grad()
                torch.nn.functional.cross_entropy(model(x), labels).backward()

            step()
            _, results[name], _ = timed(step)
        work = f"a training step of VGG11-BN at width {width:g} on 500 images"
        both = [(name, results[name], None) for name in ("channels_last", "default")]
        answer.append(told(work, *both, width=width))
    return answer


def graph() -> Rows:
    """Two-sided graph matching against Git Re-Basin's weight matching, planted permutations with noise 2 σ."""
    answer = []
    for width in (0.125, 0.25, 0.5, 1.0):
        network, groups, state, truth = scaling.plant("vgg11", width, 2.0, 0)
        both, found = [], 0.0
        for name, solver in (("graph", "graph"), ("weight", "coordinate_descent")):

            def work(network=network, groups=groups, state=state, solver=solver) -> matching.Solution:
                return matching.solve(Problem(network.state_dict(), state, groups), solver=solver)

            solution, seconds, peak = timed(work, repeats=1)
            both.append((name, seconds, None if both else peak))  # the second uses again what the first left
            found = found or scaling.recovered_share(truth, solution.perms)
        more = {"recovered": found, "dense_bytes": scaling.dense_bytes(network, groups), "width": width}
        work = f"graph matching of VGG11 at width {width:g}, planted permutation, noise of 2 standard deviations"
        answer.append(told(work, *both, **more))
    return answer


def fuse() -> Rows:
    """What a fused network costs: corrections at the midpoint of the shipped pairs and, at the published width, where
    none is shipped, of random weights."""
    answer = []
    for width, label, count in ((0.125, "1/8", 2000), (0.25, "1/4", 2000), (2.0, "2, random weights,", 500)):
        both = [(name, *apart(correction, width, count, name)) for name in ("least_squares", "bn_reset")]
        answer.append(told(f"correction of VGG11-BN ×{label} on {count:,} images", *both, width=width))
    return answer


def correction(width: float, count: int, name: str) -> tuple[float, int]:
    """CPU seconds and extra peak bytes of a correction of a pair of this width, matched by activations."""
    batches = images(count)
    if width <= 0.25:
        pair = [shipped(f"vgg11bn-w{width:g}-s{seed}") for seed in (0, 1)]
    else:
        pair = [models.build("vgg11", width=width, norm="batch", seed=seed) for seed in (0, 1)]
        for network in pair:
            fusion.reset(network, batches)
    groups = symmetry.trace(pair[0], models.example("vgg11"))
    aligned = fusion.align(pair, groups, matching.match(pair, groups, "activation", images=batches, progress=False))
    _, seconds, peak = timed(lambda: fusion.correct(aligned, 0.5, name, images=batches, progress=False), repeats=1)
    return seconds, peak


def scale() -> Rows:
    """How cost grows with images, alphas and width: exponents of a power law, fitted to the two largest of each."""
    batches, answer = images(4000), []

    def pair(width: float) -> tuple:
        networks = [models.build("vgg11", width=width, norm="batch", seed=seed) for seed in (0, 1)]
        return networks, symmetry.trace(networks[0], models.example("vgg11"))

    def match(name: str, width: float, count: int) -> Callable:
        networks, groups = pair(width)
        looks = batches[: count // 500] if matching.looks_at_images(name) else None
        return lambda: matching.match(networks, groups, name, images=looks, progress=False)

    def correct(name: str, width: float, count: int, alphas: int = 1) -> Callable:
        networks, groups = pair(width)
        aligned, looks = fusion.align(networks, groups, [groups.identity()] * 2), batches[: count // 500]
        shares = [(i + 1) / (alphas + 1) for i in range(alphas)]
        parents = {side: dict.fromkeys(("test_accuracy", "test_loss"), 0.5) for side in "ab"}
        labelled = [(x, torch.zeros(len(x), dtype=torch.long)) for x in looks[:1]]
        return lambda: fusion.curve(
            aligned, shares, parents=parents, test=labelled, correction=name, images=looks, progress=False
        )

    def grow(what: str, make: Callable[[float], Callable], sizes: tuple) -> None:
        seconds = [timed(make(size), repeats=1)[1] for size in sizes]
        exponent = math.log(seconds[-1] / seconds[-2]) / math.log(sizes[-1] / sizes[-2])
        row = {"study": "growth", "work": what, "sizes": list(sizes), "seconds": seconds, "exponent": exponent}
        answer.append(row)
        line = ", ".join(f"{size:g}: {took:.2f} s" for size, took in zip(sizes, seconds, strict=True))
        print(f"  VGG11-BN, random weights, {what}: {line}; exponent {exponent:.2f}", flush=True)

    counts, widths = (1000, 2000, 4000), (0.125, 0.25, 0.5)
    match("activation", 0.125, 500)()
    grow("activation, images (width ⅛)", lambda n: match("activation", 0.125, n), counts)
    grow("activation, width (1,000 images)", lambda w: match("activation", w, 1000), widths)
    grow("graph, width", lambda w: match("graph", w, 0), widths)
    for name in ("bn_reset", "least_squares"):
        grow(f"{name}, images (width ⅛)", lambda n, name=name: correct(name, 0.125, n), counts)
        grow(f"{name}, width (1,000 images)", lambda w, name=name: correct(name, w, 1000), widths)
        grow(f"{name}, alphas (width ⅛, 500)", lambda k, name=name: correct(name, 0.125, 500, k), (1, 2, 4))
    return answer


SECTIONS = {f.__name__: f for f in (spectral, solvers, rebasin, activation, layout, graph, fuse, scale)}
RECORD = paths.RESULTS / "bench.json"


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.bench")
    parser.add_argument("sections", nargs="*", help=f"any of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--record", type=Path, help=f"where the record goes; default with all sections: {RECORD.name}")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        print(f"no section {', '.join(sorted(unknown))}; there are: {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    started, before = datetime.now(UTC), os.getloadavg()[1]
    print(f"torch {torch.__version__}, one thread, load {before:.1f}")
    rows: Rows = []
    chosen = options.sections or list(SECTIONS)
    for name in chosen:
        print(name, flush=True)
        rows += [row | {"section": name} for row in apart(SECTIONS[name])]
    place = options.record or (None if options.sections else RECORD)
    if place:
        # the mean number of runnable processes over five minutes, of which this one is one at the end
        parameters = {"sections": chosen, "load_before": before, "load_after": os.getloadavg()[1]}
        origin = records.provenance(parameters, None, "cpu", started)
        record = records.record(experiment="bench", preset="quick", dataset=None, rows=rows, provenance=origin)
        print(f"wrote {records.portable(records.write_record(place, record))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
