"""How the test bed is made: data, training, evaluation. Not shipped to users of the nodes.

May import: memguard. Run ``python -m testbed --help``.
"""
