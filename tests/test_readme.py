"""README.md: its Python runs as printed, from the first block to the last, and its extensions take part."""

import re

import pytest
import torch

from lib import loaders, matching, models, paths, symmetry
from lib.loaders import sources as data_sources
from lib.matching import matchers
from lib.models import architectures
from lib.study import board

BLOCKS = re.findall(r"```python\n(.*?)```", (paths.ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def registries(monkeypatch, tmp_path):
    """What the README adds is gone again after the test, and what it trains lies elsewhere."""
    for module, name in ((architectures, "ARCHITECTURES"), (matchers, "MATCHERS"), (data_sources, "SOURCES")):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path / "checkpoints")


def test_every_block_runs_and_what_it_adds_is_used(registries):
    assert len(BLOCKS) == 5
    space: dict = {}
    for block in BLOCKS:
        assert len(block.splitlines()) <= 20
        exec(compile(block, "README.md", "exec"), space)
    assert space["fused"].info["layers"]
    # the model: traced, and its trained pair found by the leaderboard
    assert list(board.pairs()) == ["twolayers-s0"]
    pair = [models.build("twolayers", seed=seed) for seed in (0, 1)]
    groups = symmetry.trace(pair[0], models.example("twolayers"))
    # the matcher: a permuted copy is lined up again
    truth = groups.random(torch.Generator().manual_seed(0))
    models.load_state(pair[1], symmetry.permute(pair[0].state_dict(), groups, truth))
    found = matching.match([*pair], groups, "by_norm", progress=False)[1]
    restored = symmetry.permute(pair[1].state_dict(), groups, found)
    assert all(torch.equal(restored[name], tensor) for name, tensor in pair[0].state_dict().items())
    # the data set
    assert loaders.load("noise", shape=(3, 32, 32)).train.images.shape == (500, 3, 32, 32)
