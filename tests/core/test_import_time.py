"""What ``import memguard`` may not pull in. How long it takes is measured by benchmarks/import_time.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = ("diffusers", "transformers", "comfy", "gradio", "sklearn", "matplotlib", "pyarrow", "rich", "tqdm", "pandas")


def modules_after(code: str) -> set[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_memguard_loads_no_host_and_no_extra():
    before = modules_after("import torch, numpy, PIL")
    after = modules_after("import memguard; memguard.Guard().begin().finish()")
    assert "memguard" in after
    assert not (after - before) & set(HEAVY)
