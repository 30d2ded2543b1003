"""Sphinx settings."""

import importlib.metadata
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # `benchmarks` is not installed

project = "worldmodel"
version = release = importlib.metadata.version("worldmodel")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"worldmodel {release}"
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
suppress_warnings = ["docutils"]  # Docstrings are plain text for the reader of the source.
