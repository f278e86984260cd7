"""Bring weights in from Hugging Face folders and back out, by mappings that specs and components declare."""

from .families import family_spec
from .incoming import import_checkpoint, import_run
from .outgoing import export_checkpoint

__all__ = ["export_checkpoint", "family_spec", "import_checkpoint", "import_run"]
