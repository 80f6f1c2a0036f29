"""`make published`: the two SimpleNets of the published table, fetched, fused and measured beside it."""

import argparse
import hashlib
import sys
from pathlib import Path

from .. import loaders, paths
from ..batch import run
from ..checks import InputError

# The example "model fusion" of pygmtools (Mulan PSL v2), as of this commit.
ADDRESS = (
    "https://raw.githubusercontent.com/Thinklab-SJTU/pygmtools/347d413d205a094541458926a231717b882568bd/examples/data"
)
PAIR = {  # SHA-256
    "example_model_fusion_1.dat": "f42c9bca96e68f19c0ffbf83630577061766d9dc0e9c9f0b6136de334f339c43",
    "example_model_fusion_2.dat": "cd99e0ff1c1806662c3474898f3d38c9bec2a4937ad1fa5ee1defe83955595bf",
}


def fetch(folder: Path | None = None) -> list[Path]:
    """The files of the pair in checkpoints/: those that are there, else from `folder`, else downloaded; all verified.

    Raises:
        InputError: one cannot be had, or is another file.
    """
    found = []
    for name, digest in PAIR.items():
        target = paths.CHECKPOINTS / name
        source = target if target.is_file() else folder and folder / name
        paths.check_writable("the published pair", target)
        try:
            content = source.read_bytes() if source else loaders.download([f"{ADDRESS}/{name}"], digest)
        except OSError as error:
            why = error.strerror or error
            raise InputError(
                f"{name} cannot be had: {why}; accepted: PAIR=FOLDER with the files of {ADDRESS}"
            ) from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise InputError(f"{source} is another file than was published: its SHA-256 is not {digest}")
        if source != target:
            with paths.atomic(target) as unfinished:
                unfinished.write_bytes(content)
        found.append(target)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Exit status: that of `lib.batch`; 2 where the pair cannot be had."""
    parser = argparse.ArgumentParser(f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("--pair", type=Path, help="a folder that holds the two files")
    options, others = parser.parse_known_args(arguments)
    try:
        a, b = fetch(options.pair and options.pair.expanduser())
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    given = {"dataset": "mnist", "checkpoint_a": a.name, "checkpoint_b": b.name}
    typed = [word for name, value in given.items() for word in ("-p", f"{name}={value}")]
    return run.main(["simplenet_mnist", *typed, *others])


if __name__ == "__main__":
    sys.exit(main())
