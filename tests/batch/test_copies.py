"""lib.batch.copies: notebooks to work on, whose originals stay as they are."""

from datetime import UTC, datetime

import nbformat
import pytest

from lib.batch import copies, run
from lib.paths import NOTEBOOKS
from lib.records import origin


def write(path, source, output=None):
    cell = nbformat.v4.new_code_cell(source)
    if output:
        cell.outputs = [nbformat.v4.new_output("stream", text=output)]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)


def source(path):
    return nbformat.read(path, as_version=4).cells[0].source


@pytest.fixture
def places(tmp_path):
    write(tmp_path / "notebooks" / "one.ipynb", "x = 1")
    return tmp_path / "notebooks", tmp_path / "notebooks" / "local"


def test_a_copy_follows_its_original_until_it_is_edited(places):
    original, copy = (place / "one.ipynb" for place in places)
    assert copies.refresh(*places) == [] and copy.read_bytes() == original.read_bytes()
    write(copy, "x = 1", "seen")  # executed, not edited
    before = copy.read_bytes()
    assert copies.refresh(*places) == [] and copy.read_bytes() == before
    write(original, "x = 2")
    assert copies.refresh(*places) == [] and source(copy) == "x = 2"

    write(copy, "x = 3")
    bytes_of_original = original.read_bytes()
    (line,) = copies.refresh(*places)
    assert line.startswith("one.ipynb: edited, kept") and "original has changed" not in line
    write(original, "x = 4")
    (line,) = copies.refresh(*places)
    assert "the original has changed since" in line and source(copy) == "x = 3"
    assert source(original) == "x = 4" and original.read_bytes() != bytes_of_original
    copy.unlink()
    assert copies.refresh(*places) == [] and source(copy) == "x = 4"


def test_a_copy_whose_state_is_lost_or_which_is_damaged_is_kept(places):
    copies.refresh(*places)
    (places[1] / "one.ipynb").write_text("not a notebook")
    (places[1] / copies.STATE).write_text("{")
    (line,) = copies.refresh(*places)
    assert "kept" in line and (places[1] / "one.ipynb").read_text() == "not a notebook"


def test_a_record_names_its_notebook_and_whether_it_was_edited(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(origin.NOTEBOOK, raising=False)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)

    def found():
        return origin.provenance({}, None, "cpu", datetime.now(UTC)).get("notebook")

    assert found() is None
    copy = tmp_path / "simplenet_mnist.ipynb"
    copy.write_text((NOTEBOOKS / copy.name).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(origin, "_git", lambda *_: None)  # whatever of it is not committed yet
    monkeypatch.setenv("JPY_SESSION_NAME", str(copy))
    as_shipped = found()
    assert (as_shipped["file"], as_shipped["edited"]) == (origin.portable(copy), False)
    assert capsys.readouterr().out == ""
    write(copy, "corrections = [...]")
    assert found()["edited"] is True and found()["sha256"] != as_shipped["sha256"]
    assert "simplenet_mnist.ipynb was edited" in capsys.readouterr().out


def test_a_kernel_of_a_run_knows_its_notebook(tmp_path):
    path = tmp_path / "own.ipynb"
    write(path, "import os\nprint(os.environ['FUSEBOOK_NOTEBOOK'])")
    done = nbformat.read(run.execute(path, {}, tmp_path / "out.ipynb").notebook, as_version=4)
    assert str(path) in done.cells[-1].outputs[0].text
