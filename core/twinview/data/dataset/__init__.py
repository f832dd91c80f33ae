"""Samples by number or as a stream: what a recipe's [data] names, in the order of an epoch."""
