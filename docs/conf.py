"""How Sphinx builds the documentation: launch/docs.sh, where every warning is an error."""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "robustjax"
author = "the robustjax authors"
copyright = author
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx.ext.mathjax"]
exclude_patterns = ["_build", "examples"]
html_theme = "furo"
html_title = "robustjax"
html_static_path = []

nb_execution_mode = "off"  # outputs are committed; launch/test.sh -m notebooks makes them again
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say shapes, units and ranges, which types do not
autodoc_default_options = {"members": True, "undoc-members": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields of NamedTuples are documented once, by the class
napoleon_use_rtype = False


def _skip(app, what, name, obj, skip, options):
    """Fields of NamedTuples whose docstring is Python's own, and what Flax adds to modules."""
    doc = getattr(obj, "__doc__", None) or ""
    return True if doc.startswith("Alias for field number") or name in ("parent", "name", "scope") else skip


def setup(app):
    """What Sphinx calls first: it reads what lies below its own folder, so executed notebooks are copied there."""
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        target = ROOT / "docs" / "notebooks" / notebook.name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(notebook, target)
    app.connect("autodoc-skip-member", _skip)
