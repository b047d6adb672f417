"""The WebUIs' door: A1111 and Forge look for scripts/*.py and nothing else. Everything is in extension/.

The repository is mounted under a name of its own, and imported relatively below it: names like ``extension`` belong to
whichever pack came first. "Reload UI" runs this file again and forgets callbacks, so modules are loaded anew.
"""

import importlib
import os
import sys
import types

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_PACK = "memguard_webui_pack"

for _name in [name for name in sys.modules if name == _PACK or name.startswith(f"{_PACK}.")]:
    del sys.modules[_name]
_pack = types.ModuleType(_PACK)
_pack.__path__ = [_ROOT]
sys.modules[_PACK] = _pack

_webui = importlib.import_module(f"{_PACK}.extension.webui")
MemGuardScript = _webui.script()
_webui.register()
