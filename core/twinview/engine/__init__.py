"""twinview.engine."""
