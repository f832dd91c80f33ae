"""twinview.data."""
