"""Runs driven from Python: chunks of one, tiles of many, and what they share."""
