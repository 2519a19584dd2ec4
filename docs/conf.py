"""Sphinx configuration of pyrosep's documentation."""

import importlib.metadata

from sphinx.util.nodes import make_refnode

project = "pyrosep"
copyright = "pyrosep contributors"
version = release = importlib.metadata.version("pyrosep")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"pyrosep {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
# Inherited docstrings are PyTorch's and Pyro's, in a markup of their own.
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # else the attributes of a NamedTuple are listed twice
napoleon_custom_sections = [("Groups", "notes_style")]


def spare_properties(app, what, name, obj, options, lines):
    """Keep napoleon from taking what stands before a colon in a property's docstring for its type."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # an empty comment


def resolve_by_name(app, env, node, contnode):
    """References by any path that a name can be imported from: ``pyrosep.SGLD`` is ``pyrosep.infer.SGLD``."""
    parts = node.get("reftarget", "").split(".")
    while len(parts) > 1 and parts[0].islower():
        parts.pop(0)
    suffix = "." + ".".join(parts)
    objects = env.get_domain("py").objects.items()
    found = [(name, entry) for name, entry in objects if name.endswith(suffix) and not entry.aliased]
    if node.get("refdomain") != "py" or len(found) != 1:
        return None
    name, entry = found[0]
    return make_refnode(app.builder, node["refdoc"], entry.docname, name, contnode, name)


def setup(app):
    app.connect("autodoc-process-docstring", spare_properties, priority=400)
    app.connect("missing-reference", resolve_by_name)
