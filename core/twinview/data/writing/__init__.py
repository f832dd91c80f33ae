"""Writing shards: samples in, tars with index and manifest out."""
