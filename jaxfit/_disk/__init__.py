"""Runs in a directory."""
