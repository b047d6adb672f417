"""Lists of prompts in, lists of results out: .txt, .jsonl, .csv and .parquet; captions of a WebDataset in."""

from . import files
from .columns import BadInput
from .read import read_prompts
from .results import open_results
from .write import Results

__all__ = ["BadInput", "Results", "files", "open_results", "read_prompts"]
