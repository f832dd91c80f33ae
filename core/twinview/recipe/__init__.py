"""Recipes: one TOML file says what a run is made of."""
from twinview.recipe.library import find as find
from twinview.recipe.library import folder as folder
from twinview.recipe.library import names as names
from twinview.recipe.library import read as read
from twinview.recipe.overrides import override as override
from twinview.recipe.parse import from_table as from_table
from twinview.recipe.schema import SLOT_KEYS as SLOT_KEYS
from twinview.recipe.schema import SLOTS as SLOTS
from twinview.recipe.schema import TABLES as TABLES
from twinview.recipe.schema import PartConfig as PartConfig
from twinview.recipe.schema import Recipe as Recipe
from twinview.recipe.structuring import structure as structure
