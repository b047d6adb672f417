"""``python -m memguard`` is the command ``memguard``.

Room: the command line. May import: memguard.cli.
"""

from .cli import main

raise SystemExit(main())
