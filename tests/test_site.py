"""The site of `make site`: its pages are those of the code, what they show runs, and a broken link is found."""

import ast
import importlib
import os
import pkgutil
import re
import subprocess
import sys

import nbformat
import pytest
import torch
from torch import nn

import lib as fb
from lib import fusion, matching, paper, paths
from lib.batch import run as batch
from lib.paper import figures, figures_networks, style
from lib.records import read_arrays, read_record
from notebooks.site import links, sources
from tests.paper.test_pages import typed

PAGES = sources.HERE / "pages"
TEXTS = {path.relative_to(PAGES).as_posix(): path.read_text(encoding="utf-8") for path in PAGES.rglob("*.md")}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXTS[page], re.DOTALL)


@pytest.mark.parametrize("kind", sources.METHODS)
def test_each_method_has_its_page_and_no_page_is_of_another(kind):
    registered = set(sources.METHODS[kind][0])
    assert {path.stem for path in (PAGES / kind).iterdir()} == registered
    assert set(re.findall(rf"^(?:.+ <)?{kind}/(\w+)>?$", TEXTS["methods.md"], re.MULTILINE)) == registered


@pytest.mark.parametrize("page", [page for page in TEXTS if page.split("/")[0] in sources.METHODS])
def test_a_method_is_described_in_full(page):
    name = page.partition("/")[2].removesuffix(".md")
    assert TEXTS[page].startswith(f"# `{name}`\n")
    headings = re.findall(r"^## (.+)$", TEXTS[page], re.MULTILINE)
    assert headings == ["Assumes", "Cost", "Source", "Where it fails", "The call"]
    kind = page.partition("/")[0]
    assert sources.METHODS[kind][0][name].what[1:] in sources.facts(kind, name)


@pytest.fixture(scope="module")
def chains():
    """What the calls of matchers work on; some take a plain chain alone."""
    torch.manual_seed(0)
    return [
        nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5, bias=False), nn.ReLU(),
            nn.Linear(5, 3, bias=False),
        )
        for _ in "ab"
    ]  # fmt: skip


@pytest.mark.parametrize("name", matching.MATCHERS)
def test_the_call_of_a_matcher_runs_as_printed(name, chains):
    (call,) = blocks(f"matchers/{name}.md", "python")
    images = torch.rand(20, 1, 8, 8)
    space = {"fb": fb, "a": chains[0], "b": chains[1], "images": images, "groups": fb.trace(chains[0], images[:2])}
    exec(call, space)
    assert space["maps"][1].matcher.partition("(")[0] == name
    assert sorted(space["maps"][1]["0"]) == list(range(4))


@pytest.mark.parametrize("name", fusion.CORRECTIONS)
def test_the_call_of_a_correction_runs_as_printed(name):
    (call,) = blocks(f"corrections/{name}.md", "python")
    torch.manual_seed(0)
    a, b = (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
        for _ in "ab"
    )
    images = torch.rand(20, 1, 8, 8)
    groups = fb.trace(a, images[:2])
    space = {"fb": fb, "images": images, "aligned": fb.align([a, b], groups, [groups.identity()] * 2)}
    exec(call, space)
    assert space["fused"].correction.partition("(")[0] == name


def test_the_ten_lines_run_as_shown_and_end_in_a_figure():
    cell, _ = blocks("index.md", r"\{code-cell\} python")
    tree = ast.parse(cell)
    assert len([line for line in cell.splitlines() if line]) == 10
    space: dict = {}
    exec(compile(ast.Module(tree.body[:-1], []), "index.md", "exec"), space)
    figure = eval(compile(ast.Expression(tree.body[-1].value), "index.md", "eval"), space)
    assert [curve.aligned.matcher for curve in space["curves"]] == ["none", "graph"]
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_the_gallery_draws_every_kind_of_figure():
    cells = "\n".join(blocks("gallery.md", r"\{code-cell\} python"))
    drawn = set()
    for name, kind in re.findall(r'^drawn\("([^"]+)", "(\w+)"', cells, re.MULTILINE):
        path = paths.RESULTS / f"{name}.json"
        arrays = read_arrays(path) if path.with_suffix(".npz").is_file() else {}
        drawn.add(figures.drawings(read_record(path), arrays)[kind].func)
    styled = set()
    for found in pkgutil.iter_modules(paper.__path__):
        module = importlib.import_module(f"lib.paper.{found.name}")
        for name, function in vars(module).items():
            if callable(function) and hasattr(function, "__wrapped__") and function.__module__ == module.__name__:
                if function.__wrapped__.__annotations__.get("return") == style.Drawn:
                    styled.add(function)
                if f"{found.name}.{name}(" in cells:
                    drawn.add(function)
    assert "fb.draw(own)" in cells  # a record of more than two networks, made on the page
    drawn.add(figures_networks.curves)
    assert len(styled) > 15
    assert {f"{f.__module__}.{f.__qualname__}" for f in styled - drawn} == set()


@pytest.mark.parametrize("page", TEXTS)
def test_no_measured_number_is_typed_into_a_page(page):
    assert typed(TEXTS[page]) == []


def test_each_notebook_has_parameters_that_it_takes():
    given = sources.parameters()
    assert sorted(given) == sorted(path.stem for path in sources.listed()) == sorted(
        path.stem for path in paths.NOTEBOOKS.glob("*.ipynb")
    )  # fmt: skip
    for notebook in sources.listed():
        batch.check_parameters(notebook, given[notebook.stem])


def copy_of(notebook, folder, **parameters):
    """An executed copy as papermill leaves it."""
    copy = nbformat.read(notebook, as_version=4)
    if parameters:
        copy.cells.insert(2, nbformat.v4.new_code_cell("x = 1", metadata={"tags": [sources.INJECTED]}))
    copy.metadata["papermill"] = {"parameters": parameters}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{notebook.stem}.executed.ipynb"
    nbformat.write(copy, path)
    return path


def test_a_users_executed_copy_is_shown_while_it_is_of_the_same_cells_and_of_their_parameters(tmp_path, monkeypatch):
    notebook = paths.NOTEBOOKS / "simplenet_mnist.ipynb"
    monkeypatch.setattr(sources, "LOCAL", tmp_path / "local")
    monkeypatch.setattr(sources, "BUILD", tmp_path / "build")
    assert sources.executed(notebook) is None
    path = copy_of(notebook, tmp_path / "local" / "simplenet_mnist")
    copy_of(notebook, tmp_path / "local" / "simplenet_mnist_epochs1", epochs=1)  # newer, and no showpiece
    assert sources.executed(notebook) == path
    copy = nbformat.read(path, as_version=4)
    copy.cells[-1].source += "\n# edited"
    nbformat.write(copy, path)
    assert sources.executed(notebook) is None


def test_a_page_says_what_it_ran_with_and_no_path_of_the_machine(tmp_path):
    path = copy_of(paths.NOTEBOOKS / "simplenet_mnist.ipynb", tmp_path, dataset="mnist-5k", epochs=3, figures_dir="x")
    copy = nbformat.read(path, as_version=4)
    written = nbformat.v4.new_output("stream", text=f"wrote {paths.ROOT}/figures/x.png")
    next(cell for cell in copy.cells if cell.cell_type == "code").outputs = [written]
    nbformat.write(copy, path)
    page = sources.experiment(path)
    assert [output.text for cell in page.cells for output in cell.get("outputs", ())] == ["wrote figures/x.png"]
    title, note = page.cells[0].source.split("\n\n")[:2]
    assert "`mnist-5k`" in note and "`epochs=3`" in note and "figures_dir" not in note
    assert title.startswith("# ") and not any(cell.source == "x = 1" for cell in page.cells)


def test_links_of_the_readmes_lead_to_pages_or_are_text(monkeypatch):
    text = "[a](lib/README.md#x), [licence](LICENSE), [CITATION.cff](CITATION.cff), ![f](figures/f.png)"
    assert sources.plain(text, "README.md") == (
        "[a](lib/README.md#x), licence (`LICENSE`), `CITATION.cff`, ![f](figures/f.png)"
    )
    monkeypatch.setattr(sources, "address", lambda: "https://example.org/x")
    assert "[licence](https://example.org/x/blob/HEAD/LICENSE)" in sources.plain(text, "README.md")
    number = "it has <!--= value x; y -->91.6<!--/--> %"
    assert sources.plain(number, "README.md") == "it has 91.6 %"


def test_a_link_to_a_file_or_an_anchor_that_is_not_there_is_found(tmp_path):
    (tmp_path / "a.html").write_text('<h1 id="top">a</h1><a href="b.html#part">b</a><a href="https://x.org/y">y</a>')
    (tmp_path / "b.html").write_text('<p id="part">b</p><a href="a.html#top">a</a><img src="">')
    assert links.broken(tmp_path) == []
    (tmp_path / "b.html").write_text('<p id="other">b</p><a href="c.html">c</a>')
    assert links.broken(tmp_path) == ["a.html: b.html#part: no such anchor", "b.html: c.html: no such file"]


def build(*arguments, code="from notebooks.site.__main__ import main; import sys; sys.exit(main(sys.argv[1:]))"):
    """The command in a process of its own: Sphinx is at home in one build."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=paths.ROOT, env=os.environ, capture_output=True, text=True, timeout=600)


def sphinx():
    for package in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(package, reason="the extra site is not installed")


def test_the_site_builds_without_its_notebooks_and_no_link_is_broken(tmp_path):
    sphinx()
    done = build("--without-notebooks", "--output", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"the site: {tmp_path}/html/index.html" in done.stdout.splitlines()[-1]
    html = tmp_path / "html"
    assert "69.36" in (html / "published_example.html").read_text(encoding="utf-8")  # a number of a record
    for page in ("index", "gallery", "published_example"):
        assert "cell_output" in (html / f"{page}.html").read_text(encoding="utf-8")
    assert not [page.name for page in html.rglob("*.html") if str(paths.ROOT) in page.read_text(encoding="utf-8")]
    # the check of links sees what this build has
    index = html / "index.html"
    index.write_text(index.read_text(encoding="utf-8").replace('href="gallery.html"', 'href="galery.html"'))
    assert {line.partition(": ")[2] for line in links.broken(html)} == {"galery.html: no such file"}


BROKEN = {
    "[nowhere](nowhere.md)": "myst.xref_missing",
    "[here](#nowhere)": "myst.xref_missing",
    "{py:func}`lib.nothing`": "ref.func",
    "![x](figures/nowhere.png)": "image.not_readable",
}


def test_each_broken_reference_fails_the_build(tmp_path):
    sphinx()
    source = tmp_path / "source"
    source.mkdir()
    (source / "index.md").write_text("# A page\n\n" + "\n\n".join(BROKEN))
    code = "from pathlib import Path; from notebooks.site.__main__ import build; import sys; "
    done = build(source, tmp_path / "html", code=code + "sys.exit(build(*map(Path, sys.argv[1:])))")
    assert done.returncode == 1
    lines = {int(line): kind for line, kind in re.findall(r"index\.md:(\d+): WARNING: .*\[([\w.]+)\]", done.stderr)}
    assert lines == {3 + 2 * place: kind for place, kind in enumerate(BROKEN.values())}
