"""The screen of A1111 and Forge, mounted by scripts/memguard.py. May import: gradio, the WebUI, memguard.hosts."""
