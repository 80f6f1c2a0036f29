"""The architectures, their training, and checkpoints in and out."""

from .architectures import ARCHITECTURES, VGG_CHANNELS, build, example
from .checkpoints import find_checkpoint, fitting, load_state, read_sidecar, read_state, save_checkpoint, state_of
from .merging import merge_linear
from .training import Recipe, Spec, evaluate, normalisation, open_dataset, skewed_indices, train, trained
