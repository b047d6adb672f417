"""One file = one command of ``memguard``: ``add_parser(subparsers)`` and ``run(args) -> int``; see memguard/cli.py."""
