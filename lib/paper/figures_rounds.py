"""Federated rounds: figures and a table over seeds, with 95 % intervals and paired differences to FedAvg."""

from collections.abc import Iterable, Mapping
from typing import Any

from . import evidence
from .evidence import Interval, grouped
from .names import Look, base, file_word, fills, look, model_label, ranked
from .style import BLUE, GREEN, GREY, METRIC_LABELS, SKY, Drawn, PaperFigure, percent, styled
from .tables import Table, interval_text

SERVERS = {
    "fedavg": Look("FedAvg", GREY, "o"),
    "fedprox": Look("FedProx", SKY, "v"),
    "matched": Look("matched, averaged", BLUE, "s"),
    "matched_least_squares": Look("matched + least squares", GREEN, "P"),
}
CONTROLS = {
    "best client": ("#444444", (0, (3, 2))),
    "mean client": ("#444444", (0, (1, 1.5))),
    "ensemble of clients": ("#8C8C8C", (0, (7, 2))),
}
AGAINST, BEST = "fedavg", "best client"

Rows = list[Mapping[str, Any]]


def name(row: Mapping[str, Any]) -> str:
    """A row's server or control."""
    return row.get("server") or row["control"]


def by_server(rows: Iterable[Mapping[str, Any]]) -> dict[str, Rows]:
    """The rows of each server and control, servers first, in the order of the tables here."""
    found: dict[str, Rows] = {}
    for row in rows:
        found.setdefault(name(row), []).append(row)
    servers = ranked((n for n in found if base(n) in SERVERS), SERVERS)
    return {n: found[n] for n in [*servers, *(n for n in found if n not in servers)]}


def interval(rows: Iterable[Mapping[str, Any]], metric: str = "test_accuracy") -> Interval:
    """Over the seeds of one server's rows of one round."""
    return evidence.mean_interval(row.get(metric) for row in rows)


def difference(
    rows: Iterable[Mapping[str, Any]], against: Iterable[Mapping[str, Any]], metric: str = "test_accuracy"
) -> Interval:
    """Of one round, paired over the seeds that both have."""
    other = {row["seed"]: row[metric] for row in against}
    return evidence.mean_interval(row[metric] - other[row["seed"]] for row in rows if row["seed"] in other)


def summary(rows: Iterable[Mapping[str, Any]], metric: str = "test_accuracy") -> list[dict[str, Any]]:
    """Of each server and control and each round: "name", "round", the interval over seeds ("mean", "low", "high",
    "n"), "megabytes" sent up and down so far (None of a control), "difference" to FedAvg (an `evidence.Interval`; None
    of itself and where it was not run), "p_holm", adjusted for all of one round, and "ahead", the difference to the
    best client."""
    found = []
    rounds = grouped(rows, "round")
    for number in sorted(rounds):
        servers = by_server(rounds[number])
        answer = []
        for each, alike in servers.items():
            sent = [row["megabytes_up"] + row["megabytes_down"] for row in alike if "megabytes_up" in row]
            other, best = (servers.get(one) if each != one else None for one in (AGAINST, BEST))
            answer.append(
                {"name": each, "round": number, "megabytes": sum(sent) / len(sent) if sent else None}
                | vars(interval(alike, metric)) | {"difference": other and difference(alike, other, metric)}
                | {"ahead": best and difference(alike, best, metric)}
            )  # fmt: skip
        adjusted = evidence.holm(row["difference"] and row["difference"].p for row in answer)
        found += [row | {"p_holm": p} for row, p in zip(answer, adjusted, strict=True)]
    return found


def table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Accuracy of each server and control after each round, per cent; its paired difference to FedAvg, points."""
    heads = ["server", "round", "MB, sent", "accuracy, %", "over FedAvg, points", "p, Holm"]
    part = [[*heads, "over best client, points", "n"]]
    for row in summary(rows):
        sent, whole, far, ahead = _cells(row)
        p = "—" if row["p_holm"] is None else f"{row['p_holm']:.3f}"
        part.append([row["name"], f"{row['round']}", sent, whole, far, p, ahead, f"{row['n']}"])
    note = (
        "Test accuracy after each round: mean [95 % interval] over n seeds; differences are paired over seeds, p "
        "values adjusted over all comparisons of a round (Holm). MB: sent so far, both ways"
    )
    return Table([part], note=note)


@styled
def rounds(rows: Iterable[Mapping[str, Any]], record: Mapping[str, Any], columns: int = 2) -> Drawn:
    """Accuracy by round and by megabyte sent, a line a server and a band that is its 95 % interval from three seeds on;
    controls are lines without a place on the axis of megabytes. Of a single round, a point each with its interval."""
    found, rows = summary(rows := list(rows)), rows
    seeds = len({row["seed"] for row in rows})
    heading = (
        f"{model_label(record['model'])} on {record['dataset']}, {_setting(record)}, n = {seeds} "
        f"seed{'s' * (seeds > 1)}" + (", mean and 95 % interval" if seeds > 2 else "")
    )
    last = max(row["round"] for row in found)
    servers = list(dict.fromkeys(row["name"] for row in found))
    filled = fills((each,) for each in servers if base(each) in SERVERS)
    if last == 1:
        figure = PaperFigure(columns, 0.75 + 0.22 * len(servers))
        axes = figure.subplots()
        for place, row in enumerate(found):
            own = look(SERVERS, row["name"]) if base(row["name"]) in SERVERS else Look(row["name"], "#444444", "|")
            spot = own.mark(fill=filled.get((row["name"],), "full"))
            if row["low"] is not None:
                axes.plot([100 * row["low"], 100 * row["high"]], [place] * 2, color=own.colour, linewidth=1.2)
            axes.plot(100 * row["mean"], place, **spot)
        labels = [look(SERVERS, each).label if base(each) in SERVERS else f"control: {each}" for each in servers]
        axes.set_yticks(range(len(servers)), labels)
        axes.set(xlabel=METRIC_LABELS["test_accuracy"], ylim=(len(servers) - 0.5, -0.5))
        return figure, heading
    figure = PaperFigure(columns, 3.2 if columns == 2 else 5.2)
    by_round, by_sent = figure.subplots(*((1, 2) if columns == 2 else (2, 1)), sharey=True)
    for each in servers:
        alike = [row for row in found if row["name"] == each]
        values = [percent("test_accuracy") * row["mean"] for row in alike]
        numbers = [row["round"] for row in alike]
        if each in CONTROLS:
            colour, dashes = CONTROLS[each]
            line = by_round.plot(numbers, values, color=colour, linestyle=dashes, linewidth=1, zorder=1)
            figure.key(f"control: {each}", *line)
            continue
        method = look(SERVERS, each)
        for axes, places in ((by_round, numbers), (by_sent, [row["megabytes"] for row in alike])):
            figure.key(method.label, *axes.plot(places, values, zorder=3, **method.mark(fill=filled[each,])))
            if alike[0]["low"] is not None:
                low, high = ([100 * row[end] for row in alike] for end in ("low", "high"))
                axes.fill_between(places, low, high, color=method.colour, alpha=0.15, linewidth=0)
    by_round.set(xlabel="round", ylabel=METRIC_LABELS["test_accuracy"])
    by_round.xaxis.get_major_locator().set_params(integer=True)
    by_sent.set(xlabel="megabytes sent, up and down")
    if columns == 1:
        by_sent.set_ylabel(METRIC_LABELS["test_accuracy"])
    by_round.set_ylim(0, 100)
    return figure, heading


def _setting(record: Mapping[str, Any]) -> str:
    setting = record["setting"]
    parts = [f"{setting['clients']} clients, {setting['split']}", f"{setting['recipe']['epochs']} local epochs"]
    parts.append("one common start" if setting["start"] == "common" else "different starts")
    if setting["fraction"] < 1:
        parts.append(f"{setting['fraction']:g} of them a round")
    return ", ".join(parts)


def pooled(records: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[Rows, Mapping[str, Any]]]:
    """The rows of records alike but for their seeds, and the first of these records, by what tells them from the others
    ("" where all are alike)."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for record in records.values():
        kinds.setdefault(repr(_alike(record)), []).append(record)
    firsts = [_alike(alike[0]) for alike in kinds.values()]
    varying = [key for key in firsts[0] if len({repr(first[key]) for first in firsts}) > 1] if firsts else []
    return {
        "_".join(file_word(str(first[key])) for key in varying): ([row for r in alike for row in r["rows"]], alike[0])
        for first, alike in zip(firsts, kinds.values(), strict=True)
    }


def _alike(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"dataset": record["dataset"]} | {k: value for k, value in record["setting"].items() if k != "seed"}


def is_there(records: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether these are records of federated rounds."""
    return all(record["experiment"] == "federated" for record in records.values())


SHOWN = ("fedavg", "matched", "matched(guard=false)", "matched_least_squares",
         "matched_least_squares(head=class_counts)", BEST, "ensemble of clients")  # fmt: skip


def page_table(sweeps: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """What the servers `SHOWN` reach in the last round of each sweep of federated rounds, as Markdown."""
    part = [["setting", "server", "round", "MB sent", "accuracy, %", "more than FedAvg", "than the best client", "n",
             "record"]]  # fmt: skip
    for sweep, records in sweeps.items():
        for rows, record in pooled(records).values() if is_there(records) else ():
            where = f"{model_label(record['model'])} on {record['dataset']}, {_setting(record)}"
            last = max(row["round"] for row in rows)
            for row in summary(row for row in rows if row["round"] == last):
                if row["name"] in SHOWN:
                    part.append([where, row["name"], f"{last}", *_cells(row), f"{row['n']}", f"`{sweep}`"])
    return Table([part], texts=2).markdown() if len(part) > 1 else "No record yet: `make sweep SWEEP=federated`."


def _cells(row: Mapping[str, Any]) -> list[str]:
    """MB sent, accuracy, and its differences to FedAvg and to the best client."""
    whole = Interval(*(row[field] for field in ("mean", "low", "high", "n", "std")))
    apart = ["—" if row[one] is None else interval_text(row[one]) for one in ("difference", "ahead")]
    return ["—" if row["megabytes"] is None else f"{row['megabytes']:.1f}", interval_text(whole), *apart]
