"""Study jaxfit and measure it. The library imports nothing from here."""
