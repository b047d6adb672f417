"""Lists of prompts in, lists of results out: .txt, .jsonl, .csv and .parquet; captions of a WebDataset in.

Room: the core. May import: the standard library, memguard.records; pyarrow where a .parquet file is asked for.
"""

from . import files
from .read import BadInput, read_prompts
from .write import Results, open_results

__all__ = ["BadInput", "Results", "files", "open_results", "read_prompts"]
