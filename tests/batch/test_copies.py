"""lib.batch.copies: notebooks to work on, whose originals stay as they are."""

import nbformat
import pytest

from lib.batch import copies


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
