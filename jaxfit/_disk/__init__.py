"""What a run keeps in a directory."""
