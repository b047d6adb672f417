"""The screen of A1111, Forge and Forge Neo, mounted by scripts/memguard.py."""
