"""Timings of jaxfit beside the same computation by other means."""
