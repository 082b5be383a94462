# SPDX-License-Identifier: Apache-2.0
"""How `tox -e api-ref` makes HTML of the pages, which `tools/generate.py api-ref` wrote; nothing is imported."""

project = "cinderlite API reference"
project_copyright = "the cinderlite authors"
extensions = ["myst_parser"]
html_theme = "alabaster"
html_title = project
html_show_sphinx = False
html_theme_options = {"fixed_sidebar": True}
myst_heading_anchors = 2
