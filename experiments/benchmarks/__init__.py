"""Time jaxfit beside other ways to do the same computation."""
