"""twinview.cli."""
