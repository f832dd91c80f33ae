"""Features of a set of images: computed, written to files, and searched for duplicates and outliers."""
