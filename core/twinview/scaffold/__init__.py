"""A package for a new method, written from templates."""
