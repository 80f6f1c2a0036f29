"""The architectures, their training, and checkpoints in and out."""

from .alike import alike
from .architectures import ARCHITECTURES, VGG_CHANNELS, Architecture, build, example
from .checkpoints import (
    Checkpoint,
    find_checkpoint,
    fitting,
    is_extra,
    load_state,
    read_checkpoint,
    read_sidecar,
    read_state,
    save_checkpoint,
    state_of,
    state_sha256,
)
from .merging import merge_linear
from .resized import BlockLayerNorm, BlockLinear, can_resize, resized
from .training import (
    Part,
    Recipe,
    Score,
    Spec,
    dirichlet_parts,
    evaluate,
    normalisation,
    of_classes,
    open_dataset,
    outputs,
    perplexity,
    places,
    score,
    skewed_indices,
    train,
    trained,
)
