"""Turn examples into tokens, rows and batches, the same ones in every process."""

from .dataset import Dataset, Report, Side
from .preparation import prepare
from .tokenizer import Tokenizer, load_tokenizer

__all__ = ["Dataset", "Report", "Side", "Tokenizer", "load_tokenizer", "prepare"]
