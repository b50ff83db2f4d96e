"""How Sphinx builds the site from the copies that .ci/site.py makes. Nothing on a page comes from another host."""

import re
import sys
import tomllib
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.ext.napoleon import Config, GoogleDocstring

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]  # document this clone, wherever another one is installed

project = "NAYER kit"
author = "NAYER kit contributors"
copyright = f"{author}. Code: MIT. Text and figures: CC BY 4.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]

# Notebooks are shown as they were committed.
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # would come from another host
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}
autodoc_use_type_comments = False
viewcode_follow_imported_members = False  # a class has one page
add_module_names = False
maximum_signature_line_length = 70
highlight_language = "text"  # of the docstrings' formulas
default_role = "literal"  # docstrings write `code` as Markdown does
toc_object_entries = False  # they would make every page's sidebar, and the build, several times longer
nitpick_ignore_regex = [  # types of other libraries, whose pages lie on other hosts
    ("py:class", r"(collections|contextlib|numpy|pandas|pathlib|torch|tyro|types)\..*"),
    ("py:class", r"Axes|BaseFileLock|Figure|FlagCreatePairsOff|Module|Positional|nayer_lib\.text\.hub\.T"),
    ("py:(class|obj)", r"ID|(dict|tuple)\[str|.*\b(Annotated|Literal)\[.*"),  # pieces of a command's annotations
]

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["static"]
html_css_files = ["kit.css"]
html_favicon = "static/favicon.svg"
html_context = {"default_mode": "auto"}  # light or dark as the reader's system is
html_domain_indices = False  # the sidebar has the modules
html_math_renderer = "mathml"
html_theme_options = {
    "repository_url": tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"],
    "use_repository_button": True,
    "navbar_persistent": [],  # the sidebar has the search
}


def visit_math(translator, node):
    translator.body.append(str(tex2mathml(node.astext())))
    raise nodes.SkipNode


def visit_math_block(translator, node):
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def read_docstring(app, what, name, obj, options, lines):
    """Plain text to reStructuredText: formulas as they stand, other marks escaped, Google's sections by napoleon.

    Napoleon is called here and not as an extension because it takes the words before a colon in an attribute's sentence
    for its type.
    """
    text, formula = [], False
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("    ") and not before:
            text += ["::", ""]
            formula = True
        elif line and not line.startswith("    "):
            formula = False
        text.append(line if formula else re.sub(r"(`[^`]*`)|(\||_\b)", lambda m: m[1] or "\\" + m[2], line))
    config = Config(napoleon_custom_sections=[("Attributes", "params_style")])  # else they are described twice
    lines[:] = GoogleDocstring(text, config, app, "object", name, obj, options).lines()


def setup(app):
    app.connect("autodoc-process-docstring", read_docstring)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
