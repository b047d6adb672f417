"""What A1111, Forge and Forge Neo share. May import: memguard's core; of the WebUIs nothing."""
