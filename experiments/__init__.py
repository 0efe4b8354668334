"""What was tried and measured with jaxfit; nothing here is imported by the library."""
