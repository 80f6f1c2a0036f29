"""Images on which an augmentation can be read off: both loaders' tests hold them to it."""

import torch

from lib.loaders import Split


def marked(n: int, channels: int = 3) -> Split:
    """Images of value 1 with one pixel of value 200, at row 10, column 6 of 32; labels are the indices."""
    images = torch.ones(n, channels, 32, 32, dtype=torch.uint8)
    images[:, :, 10, 6] = 200
    return Split(images, torch.arange(n))


def moves(images: torch.Tensor) -> torch.Tensor:
    """Counts (2, 9, 9) of what became of marked images: flipped or not, rows moved + 4, columns moved + 4.

    Asserts that each is an exact flip and translation of a marked image with zeros where nothing is left.
    """
    b, _, h, w = images.shape
    mark = (images[:, 0] == 200).nonzero()
    assert torch.equal(mark[:, 0], torch.arange(b)), "not one mark in every image"
    flipped = mark[:, 2] > 15
    down, right = mark[:, 1] - 10, mark[:, 2] - torch.where(flipped, w - 1 - 6, 6)
    inside = [
        (torch.arange(n) - shift[:, None] >= 0) & (torch.arange(n) - shift[:, None] < n)
        for n, shift in ((h, down), (w, right))
    ]
    expected = (inside[0][:, :, None] & inside[1][:, None, :]).to(images.dtype)
    expected[torch.arange(b), mark[:, 1], mark[:, 2]] = 200
    assert torch.equal(images, expected[:, None].expand_as(images)), "not a translation with zero fill"
    counts = torch.zeros(2, 9, 9)
    ones = torch.ones(b)
    return counts.index_put_((flipped.long(), down + 4, right + 4), ones, accumulate=True)


def unevenness(counts: torch.Tensor) -> float:
    """How far counts over equally likely cells are from even: standard deviations of the chi-square statistic
    above its mean. Within a few of 0 by chance."""
    mean, cells = counts.mean(), counts.numel()
    chi_square = ((counts - mean) ** 2 / mean).sum()
    return float((chi_square - (cells - 1)) / (2 * (cells - 1)) ** 0.5)
