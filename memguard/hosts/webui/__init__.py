"""What A1111 and Forge share. May import: memguard's core; of the WebUIs nothing."""
