"""How Sphinx builds these pages: `make docs`, which asks nothing of a network and takes warnings for errors."""

import sys
from pathlib import Path

from mtrl import __version__

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_extensions")]  # envs and agents, which no installation has

project = "mtrl"
author = "the authors of mtrl"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "docstrings",
    "repository_files",
]
exclude_patterns = ["_build"]

# Pages
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4  # links such as support.md#losses-and-parameters, as in a view of the repository
copybutton_prompt_text = "$ "

# Docstrings: Google's convention; words in single backticks are links where there is something of that name
default_role = "py:obj"
napoleon_use_ivar = True
napoleon_custom_sections = [(name, "params_style") for name in ("ELBO", "Perceiver", "Predictive", "Adversarial")]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
python_display_short_literal_types = True

highlight_language = "none"  # of blocks that name none, such as the figure of the architecture
pygments_dark_style = "github-dark"

html_theme = "furo"
html_title = "mtrl"
html_static_path = ["_static"]
html_css_files = sorted(path.name for path in (ROOT / "docs" / "_static").glob("*.css"))
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_show_search_summary = False  # a browser does not let a page from a file read the other pages
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5cad", "color-brand-content": "#0b5cad"},
    "dark_css_variables": {"color-brand-primary": "#7cb8f2", "color-brand-content": "#7cb8f2"},
}
