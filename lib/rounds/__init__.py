"""Federated learning in rounds: clients that train on images of their own, and a server that makes one network of theirs."""

from .federation import Federation, Setting, Update, size
from .loop import Coordinator, alone, forget, resume_path, serve, simulate
from .servers import SERVERS, Combined, Server, combine, looks_at_images, proximal, read_server, spell_server
from .splits import SPLITS, read_split, split
