"""Data: shards by offset, an order that is a pure function of (seed, epoch), draws that depend on the sample alone."""
