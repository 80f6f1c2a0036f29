"""`make bench`: every performance claim as a ratio against the published procedure or a peer, in one process.

Each section runs the same work both ways and prints what each finds; where permutations must agree it asserts so. Slow
peers run once, others three times (the median counts). Machines are noisy:
read ratios, not seconds. Data where it is at hand (FUSEBOOK_DATA), else random images.
"""

import argparse
import copy
import math
import statistics
import sys
import time
from collections.abc import Callable

import pygmtools
import torch

from lib import fusion, loaders, matching, models, symmetry
from lib.checks import InputError
from lib.matching import Problem, assign
from lib.study import scaling
from tests.oracles import layer_by_layer


def timed(work: Callable, repeats: int = 3) -> tuple[object, float, int]:
    """(result, median seconds, extra peak bytes of the first run)."""
    seconds, peak = [], 0
    for run in range(repeats):
        with matching.Peak("cpu") as memory:
            start = time.perf_counter()
            result = work()
            seconds.append(time.perf_counter() - start)
        peak = max(peak, memory.bytes or 0) if run == 0 else peak
    return result, statistics.median(seconds), peak


def row(name: str, seconds: float, peak: int, base: tuple[float, int] | None = None) -> None:
    ratios = f"   {base[0] / seconds:6.1f} × faster, {base[1] / max(peak, 1):6.1f} × less memory" if base else ""
    print(f"  {name:<62} {seconds:9.3f} s  {peak / 1e6:8.1f} MB{ratios}", flush=True)


def spectral() -> None:
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
    print("SimpleNet, spectral graph matching (same permutations)")
    row("dense K + pygmtools.sm + pygmtools.hungarian", slow, large)
    row("matrix-free sweep", quick, small, (slow, large))


def images(count: int) -> list[torch.Tensor]:
    try:
        dataset = models.open_dataset("cifar10-jpeg", "vgg11")
        batches = loaders.MemoryLoader(dataset.train.head(count), 500, normalise=loaders.CIFAR)
        return [x for x, _ in batches]
    except InputError:
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(500, 3, 32, 32, generator=generator) for _ in range(count // 500)]


def solvers() -> None:
    """pygmtools' general solvers on dense K against the same iterations without it."""
    print("SimpleNet ×1/2, planted permutation with noise of 2 standard deviations, two-sided objective")
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
    for name, peer in peers.items():
        X, slow, large = timed(lambda peer=peer: peer(problem.affinity()).T, repeats=1)
        rows = zip(problem.sizes, X.split(sizes), strict=True)
        theirs = {group: assign(found.split(sizes, dim=1)[i]) for i, (group, found) in enumerate(rows)}
        ours, quick, small = timed(lambda name=name: matching.solve(problem, solver=name))
        told = [
            f"objective {problem.objective(perms):.1f}, finds {scaling.recovered_share(truth, perms):.2f}"
            for perms in (theirs, ours.perms)
        ]
        row(f"{name}, pygmtools: {told[0]}", slow, large)
        row(f"{name}: {told[1]}", quick, small, (slow, large))


def shipped(name: str) -> torch.nn.Module:
    """A shipped network by name."""
    path = models.find_checkpoint(name)
    spec = models.read_sidecar(path)["spec"]
    model = models.build(spec["model"], width=spec["width"], norm=spec["norm"])
    return models.load_state(model, models.read_state(path), name)


def rebasin() -> None:
    """Weight matching against the package `rebasin` (PyPI) on shipped pairs: squared distance that is left between
    the weights of A and B, and whether B still computes what it did."""
    try:
        from rebasin import PermutationCoordinateDescent
    except ImportError:
        print("rebasin is not installed: pip install -e '.[bench]'")
        return
    print("weight matching against rebasin, shipped pairs: ‖A − B‖², largest change of B's outputs")
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
            return models.load_state(copy.deepcopy(b), symmetry.permute(b.state_dict(), groups, perms))

        own()
        theirs, slow, large = timed(peer, repeats=1)
        ours, quick, small = timed(own)
        told = []
        for moved in (theirs, ours):
            with torch.inference_mode():
                pairs = zip(a.parameters(), moved.parameters(), strict=True)
                left = sum(float((p - q).square().sum()) for p, q in pairs)
                told.append(f"{left:.1f}, outputs change by {float((moved(x) - b(x)).abs().max()):.1e}")
        row(f"{kind}, rebasin: {told[0]}", slow, large)
        row(f"{kind}, weight: {told[1]}", quick, small, (slow, large))


def activation() -> None:
    """VGG11-BN's activation matching: layer by layer, as published, against one pass."""
    pair = [shipped(f"vgg11bn-w0.25-s{seed}") for seed in (0, 1)]
    groups = symmetry.trace(pair[0], models.example("vgg11"))
    batches = images(2000)
    matching.match(pair, groups, "activation", images=batches[:1], progress=False)[1]
    found, quick, small = timed(lambda: matching.match(pair, groups, "activation", images=batches, progress=False)[1])
    expected, slow, large = timed(lambda: layer_by_layer(*pair, batches), repeats=1)
    differing = sum(int((found[name] != perm).sum()) for name, perm in expected.items())
    assert differing == 0, f"{differing} units are matched differently"
    print("VGG11-BN ×1/4 (shipped pair), activation matching on 2,000 images (same permutations)")
    row("layer by layer, as published", slow, large)
    row("all layers in one pass", quick, small, (slow, large))


def layout() -> None:
    """Training throughput on the CPU: channels_last against the default layout."""
    batch = images(500)[0]
    labels = torch.arange(len(batch)) % 10
    print("VGG11-BN, one training step of 500 images, by memory layout")
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
        ratio = results["default"] / results["channels_last"]
        told = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in results.items())
        print(f"  width {width:<6} {told}: {ratio:.1f} × faster", flush=True)


def graph() -> None:
    """Two-sided graph matching against Git Re-Basin's weight matching, planted permutations with noise 2 σ."""
    print("VGG11, planted permutation with noise of 2 standard deviations")
    for width in (0.125, 0.25, 0.5, 1.0):
        rows = {row["solver"]: row for row in scaling.scaling_rows(["vgg11"], [width], ["coordinate_descent", "graph"])}
        ratio = rows["graph"]["seconds"] / rows["coordinate_descent"]["seconds"]
        dense = rows["graph"]["dense_bytes"] / max(rows["graph"]["peak_bytes"] or 1, 1)
        told = ", ".join(f"{name} {row['seconds']:.2f} s finds {row['recovered']:.3f}" for name, row in rows.items())
        print(f"  width {width:<6} {told}: {ratio:.1f} × the time; dense K is {dense:.1e} × the memory", flush=True)


def scale() -> None:
    """How cost grows with images, alphas and width: exponents of a power law, fitted to the two largest of each."""
    print("VGG11-BN, random weights: seconds, and the exponent with which they grow (1 is linear)")
    batches = images(4000)

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
        told = ", ".join(f"{size:g}: {took:.2f} s" for size, took in zip(sizes, seconds, strict=True))
        print(f"  {what:<40} {told}; exponent {exponent:.2f}", flush=True)

    counts, widths = (1000, 2000, 4000), (0.125, 0.25, 0.5)
    match("activation", 0.125, 500)()
    grow("activation, images (width ⅛)", lambda n: match("activation", 0.125, n), counts)
    grow("activation, width (1,000 images)", lambda w: match("activation", w, 1000), widths)
    grow("graph, width", lambda w: match("graph", w, 0), widths)
    for name in ("bn_reset", "least_squares"):
        grow(f"{name}, images (width ⅛)", lambda n, name=name: correct(name, 0.125, n), counts)
        grow(f"{name}, width (1,000 images)", lambda w, name=name: correct(name, w, 1000), widths)
        grow(f"{name}, alphas (width ⅛, 500)", lambda k, name=name: correct(name, 0.125, 500, k), (1, 2, 4))


SECTIONS = {function.__name__: function for function in (spectral, solvers, rebasin, activation, layout, graph, scale)}


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.bench")
    parser.add_argument("sections", nargs="*", help=f"any of {', '.join(SECTIONS)}; default: all")
    chosen = parser.parse_args().sections
    if unknown := set(chosen) - set(SECTIONS):
        print(f"no section {', '.join(sorted(unknown))}; there are: {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in chosen or SECTIONS:
        SECTIONS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
