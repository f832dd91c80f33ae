"""Data: shards by offset, an order that is a pure function of (seed, epoch), draws that are one of the sample."""
