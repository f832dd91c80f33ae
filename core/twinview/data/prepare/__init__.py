"""What `twinview shards` does: pack data sets, check shards, count labels."""
