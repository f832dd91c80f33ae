"""From a recipe to its parts, made and checked."""
from twinview.assembly.assembly import Assembly as Assembly
from twinview.assembly.assembly import assemble as assemble
from twinview.assembly.checks import SINGLE as SINGLE
from twinview.assembly.plugins import GROUP as GROUP
from twinview.assembly.plugins import answered as answered
from twinview.assembly.plugins import find_part as find_part
from twinview.assembly.plugins import installed as installed
from twinview.assembly.plugins import load as load
from twinview.assembly.plugins import methods as methods
from twinview.assembly.plugins import offers as offers
from twinview.assembly.plugins import option as option
from twinview.assembly.plugins import options as options
from twinview.assembly.plugins import pluggy_manager as pluggy_manager
