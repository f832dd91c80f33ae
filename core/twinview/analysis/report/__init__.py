"""Runs as things to list, compare and look at: tables, curves, pages."""
