"""The READMEs: their Python runs as printed and what it adds takes part; their tables, signatures, commands and links
are those of the code."""

import inspect
import re
import tomllib
from typing import Literal, get_args, get_origin

import pytest
import torch
import yaml
from torch import nn

import lib
from lib import fusion, loaders, matching, models, paths, rounds, symmetry
from lib.batch import sweep
from lib.paper import figures, figures_rounds, names
from lib.study import board, own, parameters

READMES = ["README.md", *(f"{folder}/README.md" for folder in ("figures", "lib", "notebooks", "tests"))]
TEXTS = {name: (paths.ROOT / name).read_text(encoding="utf-8") for name in READMES}
REGISTRIES = (models.ARCHITECTURES, matching.MATCHERS, fusion.CORRECTIONS, loaders.SOURCES, symmetry.RULES)


@pytest.fixture(autouse=True)
def registries(monkeypatch, tmp_path):
    """What a README adds is gone again after the test, and what it writes lies elsewhere."""
    before = [dict(registry) for registry in REGISTRIES]
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.chdir(tmp_path)
    yield
    for registry, rows in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(rows)


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXTS[name], re.DOTALL)


def run(name: str) -> dict:
    """The names that a README's Python leaves, run from its first block to its last."""
    space: dict = {}
    for block in blocks(name, "python"):
        assert len(block.splitlines()) <= 20
        exec(compile(block, name, "exec"), space)
    return space


def test_only_these_readmes_hold_python():
    assert [name for name in READMES if blocks(name, "python")] == ["README.md", "lib/README.md"]


def test_the_first_example_runs_and_leaves_what_it_says(tmp_path, capsys):
    space = run("README.md")
    assert (tmp_path / "path.png").is_file()
    assert space["fused"].info["layers"] and [p["alpha"] for p in space["path"].points] == [0, 0.5, 1]
    assert "least_squares" in capsys.readouterr().out
    whole = lib.fuse([space["a"], space["b"]], images=space["images"], progress=False).model()
    assert whole(space["images"]).shape == (64, 10)


class Wave(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.last(torch.sinc(self.first(x)))


def test_what_the_library_is_extended_by_takes_part():
    wave, x = Wave(), torch.rand(3, 4)
    with pytest.raises(symmetry.UnsupportedError, match="sinc"):
        lib.trace(wave, x)
    run("lib/README.md")
    assert [group.size for group in lib.trace(wave, x).values()] == [6]
    # the model: traced, and its trained pair found by the leaderboard
    assert list(board.pairs()) == ["twolayers-s0"]
    pair = [models.build("twolayers", seed=seed) for seed in (0, 1)]
    groups = lib.trace(pair[0], models.example("twolayers"))
    # the matcher: a permuted copy is lined up again, unless its option says otherwise
    truth = groups.random(torch.Generator().manual_seed(0))
    moved = models.load_state(models.build("twolayers"), symmetry.act(pair[0].state_dict(), groups, truth))
    perms = lib.match([pair[0], moved], groups, "by_norm", progress=False)[1]
    assert all(torch.equal(perms[name], inverse) for name, inverse in symmetry.inverse(truth).items())
    other = lib.match([pair[0], moved], groups, "by_norm(reverse=true)", progress=False)[1]
    assert other.matcher == "by_norm(reverse=true)" and not torch.equal(other["hidden"], perms["hidden"])
    # the correction: weights as long as it says, and as they were where its option takes it back
    aligned = lib.align(pair, groups, [groups.identity()] * 2)
    lengths = [state["out.weight"].norm(dim=1) for state in aligned.states]
    fused = lib.fuse(aligned, correction="lengths", progress=False).state["out.weight"]
    torch.testing.assert_close(fused.norm(dim=1), (lengths[0] + lengths[1]) / 2)
    idle, plain = (lib.fuse(aligned, correction=name, progress=False) for name in ("lengths(power=0)", "none"))
    assert torch.equal(idle.state["out.weight"], plain.state["out.weight"])
    # the data set
    assert loaders.load("noise", shape=(3, 32, 32)).train.images.shape == (500, 3, 32, 32)


VERBS = {
    "trace": lib.trace, "match": matching.match, "align": fusion.align, "fuse": fusion.fuse, "curve": fusion.curve,
    "record": own.record, "draw": figures.draw,
}  # fmt: skip


def defaults(function) -> dict[str, object]:
    """What a signature says of the parameters that are given by name; ... where one has no default."""
    return {
        name: ... if p.default is p.empty else p.default
        for name, p in inspect.signature(function).parameters.items()
        if p.kind is p.KEYWORD_ONLY or p.default is not p.empty
    }


def places(function) -> list[str]:
    """The parameters that have to be given, by place."""
    every = inspect.signature(function).parameters.values()
    return [p.name for p in every if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty]


def test_the_verbs_have_the_signatures_that_are_printed():
    (printed,) = blocks("lib/README.md", "text")
    lines = dict(zip(VERBS, printed.splitlines(), strict=True))
    for name, line in lines.items():
        head, _, _ = line.partition(" -> ")
        space: dict = {}
        exec(f"def {head}: ...", space)
        assert defaults(space[name]) == defaults(VERBS[name]), name
        assert places(space[name]) == places(getattr(lib, name)), name


def table(name: str, heading: str) -> list[list[str]]:
    """The cells of the table in a README whose first heading is this one."""
    lines = iter(TEXTS[name].splitlines())
    next(line for line in lines if line.startswith(f"| {heading} |"))
    next(lines)
    rows = []
    while (line := next(lines, "")).startswith("|"):
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def options(function) -> str:
    """A method's options as the table spells them, the default in bold."""
    cells = []
    for name, p in list(inspect.signature(function).parameters.items())[1:]:
        literal = get_origin(p.annotation) is Literal
        values = get_args(p.annotation) if literal else (True, False) if p.annotation is bool else (p.default,)
        words = [f"`{name}`"]
        for value in values:
            word = f"{value / 2**30:g} GiB" if name == "memory" else str(value)
            word = word.lower() if isinstance(value, bool) else word
            words.append(f"**{word}**" if value == p.default else word)
        cells.append(" ".join(words))
    return "; ".join(cells)


@pytest.mark.parametrize(
    ("heading", "methods", "looks"),
    [("matcher", matching.MATCHERS, names.MATCHERS), ("correction", fusion.CORRECTIONS, names.CORRECTIONS)],
)
def test_the_tables_of_methods_are_those_of_the_code(heading, methods, looks):
    printed = [(name, label, images, given) for name, label, _, images, given in table("notebooks/README.md", heading)]
    assert printed == [
        (f"`{name}`", looks[name].label, "yes" if row.images else "no", options(row.run))
        for name, row in methods.items()
    ]


def test_the_table_of_controls_is_that_of_the_code():
    printed = [(name, *flags, given) for name, _, *flags, given in table("notebooks/README.md", "control")]
    assert printed == [
        (f"`{name}`", *("yes" if flag else "no" for flag in (row.images, row.chooses)), options(row.run))
        for name, row in fusion.CONTROLS.items()
    ]


def test_the_tables_of_servers_and_splits_are_those_of_the_code():
    assert table("notebooks/README.md", "server") == [
        [f"`{name}`", figures_rounds.SERVERS[name].label, "yes" if row.images else "no", options(row.run)]
        for name, row in rounds.SERVERS.items()
    ]
    assert [[cell.strip() for cell in row] for row in table("notebooks/README.md", "split")] == [
        [f"`{name}`", row.what, options(row.run)] for name, row in rounds.SPLITS.items()
    ]


def test_the_table_of_parameters_has_each_that_is_common():
    printed = [name for row in table("notebooks/README.md", "parameter") for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(printed) == sorted(parameters.PARAMETERS)


def test_the_tables_name_every_notebook_wing_and_file_of_tests():
    def first(name: str, heading: str) -> set[str]:
        return {word for row in table(name, heading) for word in re.findall(r"`([\w.]+)`", row[0])}

    assert first("notebooks/README.md", "notebook") == {path.stem for path in paths.NOTEBOOKS.glob("*.ipynb")}
    wings = {path.parent.name for path in paths.ROOT.glob("lib/*/__init__.py")}
    modules = {path.stem for path in paths.ROOT.glob("lib/[!_]*.py")}
    assert first("lib/README.md", "wing") == wings | modules
    assert first("tests/README.md", "file") == {path.name for path in paths.ROOT.glob("tests/test_*.py")} | {"bench.py"}


def test_options_and_grid_are_accepted_as_printed(tmp_path):
    given, grid = blocks("notebooks/README.md", "yaml")
    for name, rows in (("matchers", matching.MATCHERS), ("corrections", fusion.CORRECTIONS)):
        texts = yaml.safe_load(given)[name]
        assert parameters.methods(name, texts, name.removesuffix("s"), rows) == texts
    (tmp_path / "mine.yaml").write_text(grid)
    jobs = sweep.load(tmp_path / "mine.yaml").jobs.values()
    assert len(jobs) == 9 and {job.record.parent for job in jobs} == {paths.ROOT / "data/results/mine"}


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", READMES)
def test_every_link_and_image_leads_somewhere(name):
    links = re.findall(r"\]\(([^)\s]+)\)", TEXTS[name])
    assert links
    for link in links:
        if re.match(r"\w+:", link):
            continue
        file, _, anchor = link.partition("#")
        there = (paths.ROOT / name).parent / file
        assert there.is_file(), link
        assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("name", READMES)
def test_every_target_of_make_that_is_named_exists(name):
    targets = re.findall(r"^([a-z0-9]+):.*  ## ", (paths.ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"(?:^|`)make ([a-z0-9]+)", TEXTS[name], re.MULTILINE)
    assert named and set(named) <= set(targets)


def test_the_first_page_stays_short():
    assert len(TEXTS["README.md"].encode()) <= 7000


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((paths.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["title"], citation["version"]) == (project["name"], project["version"])
    assert citation["license"] == project["license"] and citation["authors"] == project["authors"]
    assert f"\n## {project['version']}" in (paths.ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
