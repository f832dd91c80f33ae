"""Street scenes that the program draws, as shards."""
