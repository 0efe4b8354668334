"""What drives runs from Python: chunks, tiles, and what they share."""
