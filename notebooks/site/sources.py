"""What Sphinx reads: the pages of `notebooks/site/pages`, the repo's READMEs in their places, executed notebooks.

Pages of the READMEs keep their places relative to each other, so that their links need no change. Numbers in pages of
the site stand behind the comments of `lib.paper.pages`, and are filled in from the records at each build.
"""

import hashlib
import inspect
import os
import re
import shutil
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nbformat
import yaml

from lib import fusion, matching
from lib.paper import names, pages, write
from lib.paths import FIGURES, LOCAL, NOTEBOOKS, RESULTS, ROOT
from lib.records.origin import cells_hash

HERE = Path(__file__).parent
BUILD = ROOT / "build" / "site"
DOORS = (
    "README.md", "CHANGELOG.md", "lib/README.md", "notebooks/README.md", "figures/README.md", "figures/CLAIMS.md",
    "figures/results.md", "tests/README.md",
)  # fmt: skip
METHODS = {"matchers": (matching.MATCHERS, names.MATCHERS), "corrections": (fusion.CORRECTIONS, names.CORRECTIONS)}
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
WIDGET = "application/vnd.jupyter.widget-view+json"
INJECTED = "injected-parameters"  # papermill's tag


@cache
def code_hash() -> str:
    """Hash of what a cell's output depends on beside the cell: lib, and the records."""
    files = [*(ROOT / "lib").rglob("*.py"), *(ROOT / "lib").rglob("*.mplstyle")]
    files += [*RESULTS.glob("*.json"), *(path for path in RESULTS.glob("*/*.json") if path.parent != LOCAL)]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(RESULTS if path.is_relative_to(RESULTS) else ROOT)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def parameters() -> dict[str, dict[str, Any]]:
    """{notebook: what it runs with where there is no executed copy}."""
    return yaml.safe_load((HERE / "parameters.yaml").read_text(encoding="utf-8"))


def kept(notebook: Path) -> Path:
    """Where the copy that the site executes lies, by its cells, its parameters, lib and the records."""
    cells = cells_hash(notebook.read_text(encoding="utf-8"))
    key = hashlib.sha256(f"{cells} {parameters()[notebook.stem]} {code_hash()}".encode()).hexdigest()[:16]
    return BUILD / "executed" / f"{notebook.stem}-{key}.ipynb"


def executed(notebook: Path) -> Path | None:
    """The executed copy to show: what `make` left of the notebook as it is now, with its own parameters, else the
    site's own; None: neither."""
    copies = LOCAL.glob(f"*/{notebook.stem}.executed.ipynb")
    for own in sorted(copies, key=lambda path: path.stat().st_mtime, reverse=True):
        copy = nbformat.read(own, as_version=4)
        if any(INJECTED in cell.metadata.get("tags", ()) for cell in copy.cells):  # a run of other parameters
            continue
        if cells_hash(nbformat.writes(copy)) == cells_hash(notebook.read_text(encoding="utf-8")):
            return own
    return path if (path := kept(notebook)).is_file() else None


def experiment(copy: Path) -> nbformat.NotebookNode:
    """The page of an executed notebook: it says what it ran with, and shows no widgets, which need a kernel, and no
    paths of this machine."""
    notebook = nbformat.read(copy, as_version=4)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.get("data", {}).pop(WIDGET, None):
                output["data"] = {"text/plain": "a panel of widgets, which needs a live kernel: make lab"}
            if "text" in output:
                output["text"] = output["text"].replace(f"{ROOT}{os.sep}", "")
    notebook.cells = [cell for cell in notebook.cells if INJECTED not in cell.metadata.get("tags", ())]
    title, _, rest = notebook.cells[0].source.partition("\n")
    notebook.cells[0].source = f"{title}\n\n{ran_with(copy, notebook)}\n{rest}"
    return notebook


def ran_with(copy: Path, notebook: nbformat.NotebookNode) -> str:
    """A line on the parameters, the data set and the place of an executed copy."""
    run = notebook.metadata.get("papermill", {})
    given = {name: value for name, value in run.get("parameters", {}).items() if not name.endswith(("_path", "_dir"))}
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    found = re.search(r"data set: ([\w.-]+)", printed)
    data = found[1] if found else given.pop("dataset", None)
    given.pop("dataset", None)
    where = f"data set `{data}`" if data else "the records in `data/results`"
    chosen = ", ".join(f"`{name}={_spelled(value)}`" for name, value in given.items())
    how = f"with {chosen}; all else as it stands below" if chosen else "with the parameters below"
    left = ""
    if copy.is_relative_to(LOCAL):
        left = f" It is the copy that `make` left on {run.get('start_time', 'a day unknown')[:10]}."
    elif data:
        left = " These are small parameters, for a build of minutes; results are in [figures](../figures/README.md)."
    return f"```{{note}}\nThis page ran on {where}, {how}.{left}\n```"


def _spelled(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def address() -> str | None:
    """Where the repository can be had: pyproject's project.urls, `Repository`; None where it names none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project.get("urls", {}).get("Repository")


def opened(there: str) -> str:
    """Links that open the clone at an address in Binder and, of one on GitHub, in Colab."""
    on_github = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", there)
    place = f"gh/{on_github[1]}" if on_github else f"git/{quote(there, safe='')}"
    binder = f"[Open in Binder](https://mybinder.org/v2/{place}/HEAD?labpath=notebooks%2Fexplore.ipynb)\n"
    if not on_github:
        return binder
    colab = f"https://colab.research.google.com/github/{on_github[1]}/blob/HEAD/notebooks/explore.ipynb"
    return f"[Open in Colab]({colab}) · {binder}"


def plain(text: str, page: str) -> str:
    """A page of the repo without the comments of numbers and tables, and without links to files that are no pages:
    they lead to the repository's address, where there is one, or are plain text."""

    def linked(found: re.Match) -> str:
        target, _, _ = found["target"].partition("#")
        if re.match(r"\w+:", found["target"]) or not target or found["image"]:
            return found[0]
        path = Path(os.path.normpath(Path(page).parent / target)).as_posix()
        if path in DOORS:
            return found[0]
        if there := address():
            return f"[{found['text']}]({there}/blob/HEAD/{path})"
        return f"`{path}`" if path.endswith(found["text"]) else f"{found['text']} (`{path}`)"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)  # code has no links
    text = "".join(part if place % 2 else LINK.sub(linked, part) for place, part in enumerate(parts))
    text = pages.NUMBER.sub(lambda found: found["shown"], text)
    return pages.TABLE.sub(lambda found: found["shown"], text)


def facts(kind: str, name: str) -> str:
    """What the registry says of a matcher or a correction, for the head of its page."""
    rows, looks = METHODS[kind]
    row = rows[name]
    options = [f"`{o}={p.default}`" for o, p in list(inspect.signature(row.run).parameters.items())[1:]]
    return (
        f"*{row.what[0].upper()}{row.what[1:]}.* In figures: {looks[name].label}. "
        f"It looks at {'images, without their labels' if row.images else 'no images'}. Options and their defaults: "
        f"{', '.join(options) or 'none'} ([what they mean](../notebooks/README.md#methods-and-their-options))."
    )


def site_page(path: Path, pooled: Mapping[str, Any]) -> str:
    """A page of the site's own, its numbers filled in; that of a method headed by what the registry says."""
    text = pages.filled(path.read_text(encoding="utf-8"), {}, pooled)
    if path.stem == "elsewhere" and (there := address()):
        text = f"{text.replace('<address>', there)}\n{opened(there)}"
    if path.parent.name in METHODS:
        head, _, rest = text.partition("\n")
        text = f"{head}\n\n{facts(path.parent.name, path.stem)}\n{rest}"
    return pages.NUMBER.sub(lambda found: found["shown"], text)


def assemble(folder: Path, notebooks: Mapping[str, Path]) -> None:
    """Writes everything that Sphinx reads into `folder`, which is made anew.

    Args:
        notebooks: {stem: executed copy}, the experiments to show.
    """
    shutil.rmtree(folder, ignore_errors=True)
    kinds, sweeps, _ = write.read(RESULTS)
    pooled = write.all_pools(kinds, sweeps)
    texts = {str(path.relative_to(HERE / "pages")): site_page(path, pooled) for path in (HERE / "pages").rglob("*.md")}
    texts |= {door: plain((ROOT / door).read_text(encoding="utf-8"), door) for door in DOORS}
    texts["figures/results.md"] = f"# Every curve\n\n{texts['figures/results.md']}"  # a file of one table
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        for found in LINK.finditer(text):
            image = (path.parent / found["target"]).resolve()
            if found["image"] and image.parent == (folder / "figures").resolve():
                image.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(FIGURES / image.name, image)
    (folder / "experiments").mkdir()
    for stem, copy in notebooks.items():
        nbformat.write(experiment(copy), folder / "experiments" / f"{stem}.ipynb")
    listed = "\n".join(notebooks)
    (folder / "experiments" / "index.md").write_text(
        f"# Experiments\n\nEvery notebook of `notebooks/`, executed, in the order in which their table "
        f"[lists them](../notebooks/README.md).\n\n```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n",
        encoding="utf-8",
    )


def listed() -> list[Path]:
    """The notebooks, in the order of their table in notebooks/README.md."""
    table = re.findall(r"^\| `(\w+)` \|", (NOTEBOOKS / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    return [path for name in table if (path := NOTEBOOKS / f"{name}.ipynb").is_file()]
