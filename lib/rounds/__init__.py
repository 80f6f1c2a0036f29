"""Federated learning in rounds: clients that train on images of their own, a server that makes one of theirs."""

from .federation import Federation, Setting, Update, size
from .loop import Coordinator, alone, forget, resume_path, serve, simulate
from .servers import (
    SERVERS,
    Combined,
    Server,
    check_matcher,
    check_server,
    combine,
    looks_at_images,
    proximal,
    read_server,
    spell_server,
)
from .splits import SPLITS, read_split, split
