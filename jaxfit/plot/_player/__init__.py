"""Animations as small files and players: what moves is drawn once a frame, all else once."""
