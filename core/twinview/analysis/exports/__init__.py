"""A trained encoder for other libraries: written, loaded back by the library where it is installed, and compared."""
