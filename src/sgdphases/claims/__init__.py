"""What the papers claim, and whether it came out."""
