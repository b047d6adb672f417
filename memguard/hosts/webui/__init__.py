"""What A1111, Forge and Forge Neo share."""
