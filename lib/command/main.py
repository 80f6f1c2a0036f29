"""What `fusebook` takes. Torch is imported where there is something to do, not for a page of help."""

import argparse
import sys
import warnings
from pathlib import Path
from typing import NoReturn

from ..checks import InputError

EXAMPLES = """examples:
  {prog} fuse a.safetensors b.safetensors --model vgg11 --width 0.25 --norm batch --images cifar10
  {prog} fuse a.pt b.pt --model mypackage.models:make --images images.npy --test labelled.npz -o fused.safetensors
  {prog} trace --model mypackage.models:make --shape 3,32,32
  {prog} draw data/results/simplenet_mnist_s0.json

Checkpoints that were saved with a sidecar (*.json) say their architecture and data set themselves.
Each verb has a page: {prog} fuse --help"""

FILES = ".npy, .npz, .pt, .safetensors"


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help says what is accepted\n")


def _architecture(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the architecture, as far as sidecars do not say it")
    group.add_argument(
        "--model",
        metavar="NAME",
        help="a registered architecture (vgg11, resnet20, simplenet, mlp, vit_mnist …), or package.module:function, "
        "which is called and returns a torch.nn.Module; it is looked for in this folder, too",
    )
    group.add_argument("--width", type=float, help="of a registered one: multiplier of its layers' units (default 1)")
    group.add_argument("--norm", help="of a registered one: none, batch, layer or group (default none)")
    group.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="a further argument of it; may be repeated"
    )
    group.add_argument(
        "--shape", metavar="C,H,W", help="of one input, without images to tell it (package.module:function)"
    )


def _parser() -> argparse.ArgumentParser:
    prog = Path(sys.argv[0]).name
    prog = prog if prog.startswith("fusebook") else f"python -m {__package__.partition('.')[0]}"
    parser = _Parser(
        prog,
        description="Fuse trained networks: match their units, average their weights, repair what averaging breaks.",
        epilog=EXAMPLES.format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    fuse = verbs.add_parser(
        "fuse",
        help="one network from several: weights, sidecar and card",
        description="Writes one network from several of one architecture: FILE.safetensors, a sidecar FILE.json and a "
        "card FILE.md (parents, methods, accuracy beside parents and ensemble, proof, limits).",
    )
    fuse.add_argument("networks", nargs="+", metavar="CHECKPOINT", help="two or more: paths, or names of shipped ones")
    _architecture(fuse)
    how = fuse.add_argument_group("how")
    how.add_argument(
        "--matcher",
        default="activation",
        help="none, activation, weight, graph …, options in brackets: 'graph(restarts=3)' (default %(default)s)",
    )
    how.add_argument(
        "--correction",
        default="least_squares",
        help="none, bn_reset, repair, least_squares …, options in brackets (default %(default)s)",
    )
    how.add_argument("--shares", metavar="S,S,…", help="one a network, summing to 1; of two also the second's alone")
    how.add_argument("--budget", type=float, help="how many times one network's cost the fused one may have")
    how.add_argument("--cost", default="parameters", help="what a budget counts: parameters or multiply-adds")
    how.add_argument("--separate", metavar="N|NAMES", help="groups of units that hold each parent's apart")
    how.add_argument("--labels", metavar="0-4;5-9", help="the classes of each network's outputs, where they differ")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default %(default)s)")
    how.add_argument("--seed", type=int, default=0, help="of the matcher's random orders (default %(default)s)")
    data = fuse.add_argument_group("images")
    data.add_argument(
        "--images",
        metavar="DATA",
        help=f"what methods look at: a data set (mnist, cifar10, cifar10-jpeg, mnist-5k, paradise-lost), its training "
        f"images; or a file ({FILES}) of inputs (N, …) as the network takes them (default: what the sidecars say)",
    )
    data.add_argument("--count", type=int, default=5000, help="only the first so many (default %(default)s; 0: all)")
    data.add_argument(
        "--test",
        metavar="DATA",
        help="labelled: a data set, its test images; or a file of tensors images and labels; or none (default: as "
        "--images, where that is a data set)",
    )
    data.add_argument("--test-count", type=int, default=0, help="only the first so many (default: all)")
    out = fuse.add_argument_group("output")
    out.add_argument("-o", "--output", type=Path, default=Path("fused.safetensors"), help="default %(default)s")
    out.add_argument("--overwrite", action="store_true", help="replace files that are there")

    trace = verbs.add_parser(
        "trace",
        help="which units of a network may change places, and the proof",
        description="Prints the permutation groups of a network and what their proof says; weights do not matter.",
    )
    trace.add_argument("networks", nargs="?", metavar="CHECKPOINT", help="one whose sidecar says its architecture")
    _architecture(trace)
    trace.add_argument("--images", metavar="FILE", help=f"inputs to trace with ({FILES}), in place of --shape")

    draw = verbs.add_parser(
        "draw",
        help="the figures of a run record",
        description="Writes every figure that a run record can give, as PNG and PDF.",
    )
    draw.add_argument("record", type=Path, metavar="RECORD.json")
    draw.add_argument("--kind", action="append", help="only this one, such as curves; may be repeated")
    draw.add_argument("-o", "--output", type=Path, default=Path("."), metavar="FOLDER", help="default: this one")
    draw.add_argument("--overwrite", action="store_true", help="replace files that are there")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command. Exit status: 0 done, 1 a proof failed, 2 the input was refused, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        try:
            from . import verbs

            getattr(verbs, arguments.verb)(arguments)
        except InputError as error:
            print(error, file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted: nothing was written", file=sys.stderr)
            return 130
        except Exception as error:
            from ..symmetry import SymmetryError, UnsupportedError

            if not isinstance(error, SymmetryError | UnsupportedError):
                raise
            print(error, file=sys.stderr)
            return 2 if isinstance(error, UnsupportedError) else 1
    return 0
