"""Data sets and batches: where the images come from, and the loaders that feed them to a model.

`load` finds (or downloads), verifies and parses a data set into uint8 tensors. `make_loader` turns one of its splits
into batches of normalised float images, or of a text's tokens, and int64 labels on a device: from memory
(`MemoryLoader`) or through FFCV.
"""

from .batches import BATCH, Images, MemoryLoader, batched, classes, count, make_loader, placed, read_batch
from .data import CIFAR, UNIT, Dataset, Normalisation, Split, checksum, pick_device
from .sources import CHARACTERS, SOURCES, WINDOW, Source, download, is_there, load
