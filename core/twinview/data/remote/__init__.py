"""Shards that lie elsewhere, by http, fsspec or a program, and their cache."""
