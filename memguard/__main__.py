"""``python -m memguard`` is the command ``memguard``."""

from .cli import main

raise SystemExit(main())
