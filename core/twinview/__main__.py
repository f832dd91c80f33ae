"""`python -m twinview` is `twinview`."""
import sys

from twinview.cli import main

sys.exit(main())
