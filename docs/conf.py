"""The documentation site; `make docs` builds it and executes its notebooks."""

import functools
import os
import sys
from pathlib import Path

from nbclient import NotebookClient

import geneformer_jax

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE))
# Notebooks run in folders of their own, and call the commands of this environment.
os.environ["PYTHONPATH"] = os.pathsep.join([str(_HERE.parent), str(_HERE / "tutorials")])
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

project = "geneformer_jax"
author = "the geneformer_jax authors"
copyright = author
release = version = geneformer_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "command_pages",
]
exclude_patterns = ["_build"]
nitpicky = True
# Docstrings name types as readers say them, and no inventory of another project is fetched.
nitpick_ignore_regex = [("py:.*", ".*")]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# A notebook that has not changed is not executed again, until `make docs` begins from nothing. The
# files that one writes are gone after it.
nb_execution_mode = "cache"
nb_execution_cache_path = str(_HERE / "_build" / "notebooks")
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 1200
# Progress, and what libraries have to say.
nb_output_stderr = "remove"
# myst-nb 1.4 can merge the pieces of an output too, but ends a line with each.
NotebookClient.__init__ = functools.partialmethod(NotebookClient.__init__, coalesce_streams=True)

autodoc_typehints = "none"
# Single backticks of docstrings are code; what is returned is a sentence, not a type and a colon.
default_role = "literal"
napoleon_custom_sections = [("Returns", "generic")]
smartquotes_action = "D"

html_theme = "furo"
html_title = "geneformer_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
