"""`python -m twinview` is `twinview`."""
from twinview.cli import entry

entry()
