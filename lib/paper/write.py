"""`make figures`, or this package run as a module: every figure and table again, from the tracked records alone.

Records right in the results folder are drawn one by one, those of a sweep (a folder of its own) pooled over pairs.
"""

import argparse
import hashlib
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..checks import InputError
from ..paths import FIGURES, LOCAL, LOGS, RESULTS, ROOT, resolve
from ..records import curve_key, portable, read_arrays, read_record
from . import (
    claims,
    drawing,
    evidence,
    figures,
    figures_many,
    figures_networks,
    figures_rounds,
    figures_size,
    hypotheses,
    ladder,
    pool,
    tables,
    tables_speed,
)
from .evidence import grouped
from .names import curve_label, curve_name, file_word
from .pages import write_page
from .redraw import draw_all
from .tables import save_table, write_text

INDEX = "index.txt"  # beside the figures: what the last run wrote, so that the next one removes what is no longer made

# What README.md shows, in words: (records, curve or control, what was fused, how).
_SIMPLENETS = "two SimpleNets that saw different digits of MNIST"
_ALIKE = "two VGG11-BN ×1/8 of the same images, JPEGs of CIFAR-10"
_SKEWED = "two of these, of different classes"
_PARENT, _FITTED = "nothing fused: the better parent", "matched by activations, refitted by least squares"
_BESIDE = "nothing matched: pruned side by side, refitted"
_VITS, _TURNED = "two ViTs that saw the same images of MNIST", "activation(maps=orthogonal)"
README_ROWS = (
    ("simplenet_pairs", "none", _SIMPLENETS, "averaged as they are"),
    ("simplenet_pairs", "graph", _SIMPLENETS, "graph matching, no image looked at; averaged"),
    ("simplenet_pairs", "weight", _SIMPLENETS, "weight matching, no image either; averaged"),
    ("simplenet_pairs", "parent", _SIMPLENETS, _PARENT),
    ("simplenet_pairs", "untrained_head", _SIMPLENETS, "nothing fused: random weights, last layer fitted to both"),
    ("study_w0.125", "activation + bn_reset", _ALIKE, "matched by activations, BatchNorm statistics reset"),
    ("study_w0.125", "activation + least_squares", _ALIKE, _FITTED),
    ("study_w0.125", "side_by_side", _ALIKE, _BESIDE),
    ("study_w0.125", "parent", _ALIKE, _PARENT),
    ("study_skew_w0.125_halves", claims.COMPETENT, _SKEWED, _FITTED),
    ("study_skew_w0.125_halves", hypotheses.SIDE_BY_SIDE, _SKEWED, _BESIDE),
    ("study_skew_w0.125_halves", "head(target=competence)", _SKEWED, "one parent, its last layer refitted"),
    ("study_skew_w0.125_halves", "parent", _SKEWED, _PARENT),
    ("transformers", _TURNED, _VITS, "matched, streams turned; averaged"),
    ("transformers", f"{_TURNED} + least_squares", _VITS, "the same, refitted by least squares"),
    ("transformers", "none + least_squares", _VITS, "nothing matched, refitted by least squares"),
    ("transformers", "parent", _VITS, _PARENT),
)
# What figures/README.md shows of an experiment (matcher, correction); results.md has every curve.
SHOWN = {
    "simplenet_mnist": (("none", "none"), ("graph_reference", "none"), ("graph", "none"), ("graph", "least_squares")),
    "transformer_fusion": (
        ("none", "none"), ("activation", "none"), (_TURNED, "none"), ("none", "least_squares"),
        ("activation", "least_squares"), (_TURNED, "least_squares"),
    ),
}  # fmt: skip
SHOWN_ELSE = (("activation", "bn_reset"), ("activation", "least_squares"))
# And where the parents' classes were divided: what is compared there, and with which controls.
SHOWN_SKEWED = tuple(tuple(curve.split(" + ")) for curve in (claims.COMPETENT, hypotheses.SIDE_BY_SIDE))
CONTROLS_SKEWED = ("parent", "ensemble", "head(target=competence)")
NOTE = f"At α = 0.5; {tables.INTERVALS}. {tables.READ}"
# Methods are compared with the first of these that a sweep has: the published one, else none.
BASELINES = ("activation + bn_reset", "graph_reference", "none")


Records = Mapping[str, Mapping[str, Any]]


def read(folder: Path) -> tuple[dict[str, Records], dict[str, Records], list[str]]:
    """The records right in `folder` by kind of pair (stems alike but for the seed), the sweeps in its subfolders by
    name (data/results/local is nobody's evidence), and a line for each file that is no record or shares a network with
    an earlier one. Hidden files, and what sweeps write beside their records, are passed over."""
    kinds: dict[str, dict[str, Any]] = {}
    sweeps: dict[str, dict[str, Any]] = {}
    skipped = []
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        alone = path.parent == folder
        inside = "" if alone else path.parent.name
        if path.name.startswith(".") or inside.startswith(".") or inside in (LOCAL.name, LOGS):
            continue
        name = re.sub(r"[-_]s\d+$", "", path.stem) if alone else path.parent.name
        try:
            record = read_record(path)
        except InputError as error:
            skipped.append(str(error))
        else:
            (kinds if alone else sweeps).setdefault(name, {})[path.stem] = record
    for pooled in (kinds, sweeps):
        for name, records in pooled.items():
            pooled[name], lines = independent(records)
            skipped += lines
    return kinds, sweeps, skipped


def independent(records: Records) -> tuple[dict[str, Any], list[str]]:
    """The records whose pairs share no network with an earlier one, and a line for each left out."""
    shared = evidence.overlapping(pool.rows(records)) | pool.sharing(records)
    kept = {stem: record for stem, record in records.items() if stem not in shared}
    return kept, [f"{stem}: shares a network with {other}, not pooled" for stem, other in shared.items()]


def pools(sweep: str, records: Records) -> dict[str, dict[str, Any]]:
    """The records of a sweep, split into what may be pooled, by name: the sweep's, with what tells the kinds apart."""
    kinds = evidence.kinds(pool.rows(records))

    def told_apart(*names: str) -> int:
        return len({tuple(rows[0][name] for name in names) for rows in kinds})

    # as few names as tell the kinds apart, those in plain words first: one alone where it does
    plain = ("width", "skew", "epochs", "correct_images")
    alone = (name for name in (*plain, "model", "dataset") if told_apart(name) == len(kinds) > 1)
    varying = [*alone][:1]
    for name in (*plain, *evidence.KIND):
        varying += [name] * (told_apart(*varying) < told_apart(*varying, name))
    short = {"width": "w", "correct_images": "images"} | dict.fromkeys(("model", "dataset", "norm", "skew"), "")

    def part(name: str, value: Any) -> str:
        if name == "training" and value:  # hundreds of characters, where a file's name has 255 in all
            value = hashlib.sha256(value.encode()).hexdigest()[:8]
        return f"{short.get(name, name)}{value}"

    pooled = {}
    for rows in kinds:
        parts = [part(name, rows[0][name]) for name in varying]
        pooled["_".join([sweep, *parts])] = {stem: records[stem] for stem in grouped(rows, "record")}
    return pooled


def pooled_rows(kinds: Mapping[str, Records], sweeps: Mapping[str, Records]) -> dict[str, list[dict[str, Any]]]:
    """`pool.leaderboard_rows` of everything that may be pooled, by its name, which each row has as "records" too."""
    pooled = all_pools(kinds, sweeps)
    return {n: [row | {"records": n} for row in pool.leaderboard_rows(records)] for n, records in pooled.items()}


def shown_rows(kinds: Mapping[str, Records], rows: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of figures/README.md: published weights (trained elsewhere: no seed is known of them), sweeps,
    leaderboard, each with its controls; of rows alike the one with most pairs."""
    published = [n for n in kinds if all("curves" in r and r["seeds"]["a"] is None for r in kinds[n].values())]
    board = [name for name, records in kinds.items() if _on_board(records)]
    answer: dict[Any, dict[str, Any]] = {}

    def keep(own: Any, key: Any, row: dict[str, Any]) -> None:
        alike = own, row["architecture"], row["dataset"], key
        if alike not in answer or row["n"] > answer[alike]["n"]:
            answer[alike] = row

    for name in (*published, *(name for name in rows if name not in kinds), *board):
        fused = {curve_key(row): row for row in rows[name] if "control" not in row}
        normed = any(correction == "bn_reset" for _, correction in fused)
        experiments = {row["experiment"] for row in fused.values()}
        skewed = any(row["skew"] for row in fused.values())
        shown = SHOWN_SKEWED if skewed else SHOWN.get(*experiments, SHOWN_ELSE) if fused else ()
        for matcher, correction in shown:
            key = matcher, correction if normed or correction != "bn_reset" else "none"  # a network without BatchNorm
            if row := fused.get(key):
                keep(name in published and name, key, row)
        for row in rows[name] if fused else ():
            if row.get("control") not in (None, *pool.PARENTS) and (not skewed or row["control"] in CONTROLS_SKEWED):
                keep(name in published and name, row["control"], row)
    order = {kind: place for place, kind in enumerate(dict.fromkeys(key[:3] for key in answer))}
    return [answer[key] for key in sorted(answer, key=lambda key: order[key[:3]])]


def readme_table(rows: Mapping[str, list[dict[str, Any]]]) -> str:
    """README.md's table, as Markdown."""
    part, before = [["what was fused", "how", "accuracy, %", "n", "record"]], ""
    for records, wanted, what, how in README_ROWS:
        alike = {curve_name(row): row for row in rows.get(records, ())}
        if row := alike.get(wanted):
            what, before = "the same" if what == before else what, what
            part.append([what, how, tables.interval_cell(row, "test_accuracy", 1), f"{row['n']}", f"`{records}`"])
    return tables.Table([part]).markdown()


def results_text(kinds: Mapping[str, Records], sweeps: Mapping[str, Records], rows: Mapping[str, Any]) -> str:
    """The table of figures/README.md and the notes under it, as Markdown."""
    origins = [r["provenance"] for records in (*kinds.values(), *sweeps.values()) for r in records.values()]
    devices = sorted({f"{origin['device']}, {origin['threads']} thread(s)" for origin in origins})
    origin = f"Measured on {'; '.join(devices)}; rebuilt from `data/results/` by `make figures`."
    table = tables.results_table(shown_rows(kinds, rows)).markdown()
    return f"{table}\n\n{NOTE} Every curve: [results.md](results.md).\n{origin}"


def page_tables(
    kinds: Mapping[str, Records], sweeps: Mapping[str, Records], rows: Mapping[str, Any]
) -> dict[str, dict[str, str]]:
    """The tables of each page (its path in the repo) by their names, as Markdown."""
    studies = {name: next(iter(records.values())) for name, records in kinds.items()}
    federated = {"federated": figures_rounds.page_table(sweeps)}
    speed = {name: tables_speed.markdown(name, studies) for name in tables_speed.TABLES}
    results = {"results": results_text(kinds, sweeps, rows)}
    networks = figures_networks.page(sweeps) | figures_size.page(sweeps)
    studied = hypotheses.rows_of(sweeps)
    verdicts = {
        "verdicts": hypotheses.verdicts(studied).markdown(),
        "comparisons": hypotheses.table(studied).markdown(),
        "claims": claims.table(kinds | sweeps).markdown(),
    }
    return {
        "README.md": {"results": readme_table(rows)},
        "lib/README.md": {},
        "figures/README.md": results | speed | verdicts | networks | federated,
        "figures/CLAIMS.md": results | speed | verdicts,
    }


def all_pools(kinds: Mapping[str, Records], sweeps: Mapping[str, Records]) -> dict[str, Records]:
    """Everything that may be pooled, by its name in the tables."""
    pooled = dict(kinds)
    for sweep, records in sweeps.items():
        pooled |= {sweep: records} if figures_size.is_there(records) else pools(sweep, records)
    return pooled


def _on_board(records: Records) -> bool:
    """Whether the records belong to the leaderboard."""
    return all(record["experiment"] == "leaderboard" for record in records.values())


def write_all(folder: str | Path = RESULTS, figures: str | Path = FIGURES) -> tuple[list[Path], list[str]]:
    """Rebuilds every figure and table from the records in `folder`; returns the files, and lines on what was skipped.

    For each kind of pair right in the folder: the figures of its first record (permutations only for the first kind of
    an experiment), <kind>.tex, and over several pairs <kind>_curves. Leaderboards: leaderboard, leaderboard_best (two
    columns wide). For each sweep: <pool>_curves a kind, <sweep>_widths, <sweep>_differences, <sweep>.tex; of
    transformers <sweep>_ladder and, of the first pair of each kind, <pool>_heads and <pool>_streams. results.md lists
    every curve at the midpoint. Where they are written into the repo's own folder, the tables and numbers of
    README.md, lib/README.md and figures/README.md as well. What an earlier run wrote into `figures` and this one did
    not is removed, unless a record could not be read.
    """
    folder, place = Path(folder), Path(figures)
    kinds, sweeps, skipped = read(folder)
    if not kinds and not sweeps:
        raise InputError(f"no run records in {folder}; accepted: a folder that holds some")
    whole = not _unreadable(skipped)
    rows, written = pooled_rows(kinds, sweeps), []
    contents = [[("network_graph", drawing.network_graph)], _contents_of_kinds(kinds, rows, folder, place, skipped)]
    contents += [_contents_of_sweep(name, records, rows, folder / name) for name, records in sweeps.items()]
    contents.append(_contents_of_hypotheses(hypotheses.rows_of(sweeps)))
    drawings = []
    for name, content in itertools.chain(*contents):
        if callable(content):
            drawings += _variants(name, content)
        else:
            stem, is_text = name.removesuffix(".tex"), isinstance(content, str)
            written.append(write_text(content, place / name) if is_text else save_table(content, stem, place))
    written += draw_all(drawings, place)
    every = tables.results_table(row for alike in rows.values() for row in alike)
    written.append(write_text(f"{every.markdown()}\n\n{NOTE}\n", place / "results.md"))
    if (folder, place) == (RESULTS, FIGURES):
        pooled = all_pools(kinds, sweeps)
        for page, named in page_tables(kinds, sweeps, rows).items():
            if (path := ROOT / page).is_file():
                write_page(path, named, pooled)
    return [*written, _remove_stale(place, {path.name for path in written}, whole)], skipped


# A figure's stem and what draws it, a table's stem and the table, or several floats' as text.
Contents = Iterator[tuple[str, Callable[..., Figure] | tables.Table | str]]


def _variants(stem: str, draw: Callable[..., Figure]) -> list[tuple[str, Callable[..., Figure], tuple[str, ...]]]:
    """A figure, and where its columns are left open and it fills two, one for one column of a paper, as PDF alone."""
    found = [(stem, draw, ("pdf",) if stem.endswith("_column") else ("png", "pdf"))]
    columns = inspect.signature(draw).parameters.get("columns")
    left_open = columns is not None and "columns" not in getattr(draw, "keywords", ())
    if left_open and columns.default == 2:
        found.append((f"{stem}_column", partial(draw, columns=1), ("pdf",)))
    return found


def _contents_of_kinds(
    kinds: Mapping[str, Records], rows: Mapping[str, list[dict]], folder: Path, place: Path, skipped: list[str]
) -> Contents:
    """What is made for `place` of the records right in the folder; `skipped` gets a line where something lacks."""
    board, experiments = [], set()
    for kind, records in kinds.items():
        if _on_board(records):
            board += rows[kind]
            continue
        (stem, record), *_ = records.items()
        try:
            arrays = read_arrays(folder / f"{stem}.json")
        except InputError as error:  # what needs none is drawn all the same
            skipped.append(str(error))
            arrays = {}
        drawn = figures.drawings(record, arrays)
        if not drawn and record["experiment"] not in tables_speed.EXPERIMENTS:
            skipped.append(f"{stem}.json: nothing in it that a figure shows")
        for name, figure in drawn.items():
            if not (name.startswith("matching_") and record["experiment"] in experiments):
                yield f"{stem}_{name}", figure
        experiments.add(record["experiment"])
        pairs = {name: record for name, record in records.items() if "curves" in record}
        if pairs:
            yield f"{kind}.tex", tables.table(pairs, name=curve_label)
        if len(pairs) > 1:
            yield f"{kind}_curves", partial(figures.curves, pairs)
    if board:
        yield "leaderboard", partial(figures_many.leaderboard, board, columns=2)
        for kind, alike in grouped(board, "architecture", "dataset").items():
            yield f"leaderboard_{file_word('-'.join(kind))}_column", partial(figures_many.leaderboard, alike, columns=1)
        yield "leaderboard.tex", tables.leaderboard_latex(board, tables.label_of("leaderboard", place))
    if any(row.get("best_accuracy") is not None for row in board):
        yield "leaderboard_best", partial(figures_many.leaderboard, board, "best_accuracy", columns=2)


def _contents_of_sweep(
    sweep: str, records: Records, rows: Mapping[str, list[dict[str, Any]]], folder: Path
) -> Contents:
    for kind in (figures_networks, figures_size):
        if kind.is_there(records):
            for name, content in kind.contents(records):
                yield f"{sweep}{name}", content
            return
    if figures_rounds.is_there(records):
        for word, (seeds, record) in figures_rounds.pooled(records).items():
            stem = "_".join(filter(None, [sweep, word]))
            yield f"{stem}_rounds", partial(figures_rounds.rounds, seeds, record)
            yield f"{stem}.tex", figures_rounds.table(seeds)
        return
    alike = pools(sweep, records)
    if not alike:  # studies without curves
        return
    pooled = [row for name in alike for row in rows[name]]
    yield f"{sweep}.tex", tables.pooled_table(pooled, curve_label, tables.PAPER)
    # of a midpoint alone there is no path to draw
    paths = {
        name: any(len(c["points"]) > 1 for r in pairs.values() for c in r["curves"]) for name, pairs in alike.items()
    }
    drawn = {f"{name}_curves": partial(figures.curves, pairs) for name, pairs in alike.items() if paths[name]}
    pairs = [record for of_kind in alike.values() for record in of_kind.values()]
    if len(alike) == len({r["model"]["width"] for r in pairs}) > 1 and len({r["dataset"] for r in pairs}) == 1:
        yield f"{sweep}_widths.tex", tables.widths_table(pairs)
        drawn[f"{sweep}_widths"] = partial(figures_many.width_drop, pairs)
    curves = {curve_name(row) for row in pooled if "control" not in row}
    against = next((name for name in BASELINES if name in curves), None)
    rungs = {stem: record for stem, record in records.items() if ladder.is_there(record)}
    if rungs:
        drawn[f"{sweep}_ladder"] = partial(ladder.figure, rungs)
        yield f"{sweep}_ladder.tex", ladder.table(rungs)
    elif against and (differences := evidence.summary(pool.rows(records), against=against)):
        drawn[f"{sweep}_differences"] = partial(figures_many.differences, differences, against, columns=2)
        for kind in grouped(differences, *figures_many.KIND).values():  # below each other they are longer than a page
            words = [f"{kind[0][field]}" for field in figures_many.KIND if len(grouped(differences, field)) > 1]
            stem = "_".join([sweep, *filter(None, map(file_word, words)), "differences_column"])
            drawn[stem] = partial(figures_many.differences, kind, against, columns=1)
    yield from drawn.items()
    for name, pairs in alike.items():
        if shown := next((stem for stem in pairs if stem in rungs), None):
            arrays = read_arrays(folder / f"{shown}.json")
            for kind, draw in figures.of_attention(pairs[shown], arrays).items():
                yield f"{name}_{kind}", draw


def _contents_of_hypotheses(study: hypotheses.Study) -> Contents:
    for hypothesis in hypotheses.HYPOTHESES:
        if comparisons := hypothesis.comparisons(study):
            yield f"study_{hypothesis.name}", partial(hypotheses.figure, hypothesis, comparisons)


def _remove_stale(place: Path, names: set[str], whole: bool) -> Path:
    """Writes the index, and removes what an earlier run's index names and this one's does not; only that, ever."""
    index = place / INDEX
    before = set(index.read_text().split()) if index.is_file() else set()
    stale = {name for name in before - names if name == Path(name).name}
    for name in stale if whole else ():
        (place / name).unlink(missing_ok=True)
    return write_text("\n".join(sorted(names if whole else names | stale)) + "\n", index)


def _unreadable(lines: Iterable[str]) -> bool:
    return any("not a run record" in line for line in lines)


def runs(results: Path) -> list[Path]:
    """The folders whose figures are drawn apart from each other: `results` alone, of data/results/local every one in it
    that holds records of a run or a sweep, which have nothing to do with each other."""
    if results.name != LOCAL.name:
        return [results]
    return sorted({path.parent for path in results.glob("[!.]*/[!.]*.json")}) or [results]


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 when a file in the results folder could not be read, 2 when nothing could be made."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=__doc__.splitlines()[0])
    parser.add_argument(
        "results", type=Path, nargs="?", default=RESULTS,
        help="folder of run records (*.json); of data/results/local each folder in it is drawn into itself",
    )  # fmt: skip
    parser.add_argument(
        "--figures", type=Path, help="folder to write into; by default figures/, of other records theirs"
    )
    options = parser.parse_args(arguments)
    results = resolve(options.results)
    each, worst = runs(results), 0
    for folder in each:
        place = options.figures or (FIGURES if results == RESULTS else folder)
        try:
            written, skipped = write_all(folder, place / folder.name if options.figures and len(each) > 1 else place)
        except InputError as error:
            print(error, file=sys.stderr)
            worst = 2
            continue
        for path in written:
            print(f"wrote {portable(path)}")
        for line in skipped:
            print(f"skipped {line}", file=sys.stderr)
        worst = max(worst, int(_unreadable(skipped)))
    return worst
