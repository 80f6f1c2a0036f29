"""Sphinx's configuration; `make site` (`python -m notebooks.site`) assembles the sources that it reads."""

import tomllib

from lib.paths import ROOT

_project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
project = _project["name"]
author = copyright = ", ".join(each["name"] for each in _project["authors"])
version = release = _project["version"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_static"]
templates_path = []

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_use_index = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4  # as GitHub makes them: the READMEs link to them
# Cells in the pages' own text run here; experiments come executed by lib.batch.
nb_execution_mode = "cache"
nb_execution_excludepatterns = ["experiments/*"]
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_show_tb = True
nb_merge_streams = True
nb_ipywidgets_js = {}  # widgets need a live kernel, and their scripts a network

# Docstrings name types in words, and set code between single backticks.
default_role = "code"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
nitpicky = True
# Errors are named in "Raises"; Python's own and torch's are documented elsewhere, which cannot be reached from here.
nitpick_ignore_regex = [("py:.*", r"(torch|nn|numpy)\..*|[A-Z]\w*Error|dict|int|Tensor|nn\.Module")]
