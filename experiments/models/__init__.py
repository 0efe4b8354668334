"""Training loops that people have, as they are in jaxfit: one runnable example for each."""
