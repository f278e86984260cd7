"""Bring weights in from Hugging Face folders and back out, by mappings that specs and components declare."""

from .incoming import import_checkpoint, import_run
from .outgoing import export_checkpoint

__all__ = ["export_checkpoint", "import_checkpoint", "import_run"]
