"""lib.study.published: the published pair is what it says, or is refused."""

import hashlib

import pytest

from lib import loaders, paths
from lib.checks import InputError
from lib.study import published


@pytest.fixture(autouse=True)
def pair(tmp_path, monkeypatch):
    """A published pair of a few bytes, in a folder; checkpoints/ is empty."""
    contents = {name: name.encode() for name in published.PAIR}
    monkeypatch.setattr(published, "PAIR", {name: hashlib.sha256(c).hexdigest() for name, c in contents.items()})
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path / "checkpoints")
    (tmp_path / "own").mkdir()
    for name, content in contents.items():
        (tmp_path / "own" / name).write_bytes(content)
    return tmp_path


def test_the_pair_is_copied_downloaded_or_there(pair, monkeypatch):
    asked = []

    def download(urls, digest):
        asked.extend(urls)
        return urls[0].rpartition("/")[2].encode()

    monkeypatch.setattr(loaders, "download", download)
    found = published.fetch(pair / "own")
    assert [path.name for path in found] == list(published.PAIR) and not asked
    assert published.fetch() == found and not asked, "they are there"
    for path in found:
        path.unlink()
    assert published.fetch() == found
    assert asked == [f"{published.ADDRESS}/{name}" for name in published.PAIR]


def test_another_file_is_refused_and_nothing_kept(pair, monkeypatch, capsys):
    first = next(iter(published.PAIR))
    (pair / "own" / first).write_bytes(b"another")
    with pytest.raises(InputError, match="is another file than was published"):
        published.fetch(pair / "own")
    assert not (pair / "checkpoints").exists()
    assert published.main(["--pair", str(pair / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith(
        f"{first} cannot be had: No such file or directory; accepted: PAIR=FOLDER"
    )


def test_it_runs_the_notebook_on_the_pair_with_what_else_is_given(pair, monkeypatch):
    runs = []
    monkeypatch.setattr(published.run, "main", lambda arguments: runs.append(arguments) or 0)
    assert published.main(["--pair", str(pair / "own"), "-p", "alphas=[0.5]"]) == 0
    a, b = published.PAIR
    given = ["-p", "dataset=mnist", "-p", f"checkpoint_a={a}", "-p", f"checkpoint_b={b}", "-p", "alphas=[0.5]"]
    assert runs == [["simplenet_mnist", *given]]
