"""Asks the page's modules that have no DOM, with node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

WEB = Path(__file__).resolve().parents[2] / "web"

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def ask(module: str, expression: str, **values: Any) -> Any:
    """Return the value of an expression over one module of web/js; its exports and ``values`` are names in it."""
    source = (WEB / f"js/{module}.js").as_uri()
    code = f"import * as {module} from {json.dumps(source)};"
    code += "".join(f"const {name} = {json.dumps(value)};" for name, value in values.items())
    code += f"console.log(JSON.stringify({expression}) ?? null)"
    command = ["node", "--input-type=module", "--eval", code]
    return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60, text=True).stdout)
