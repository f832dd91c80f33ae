"""Bytes of files to arrays; no knowledge of shards."""
