# SPDX-License-Identifier: GPL-2.0
"""Builds these pages by themselves: sphinx-build -W -b html Documentation <out>"""

project = "The s390 PCI IOMMU driver in Rust"
copyright = "its contributors"
language = "en"
root_doc = "index"
exclude_patterns = ["_build"]
highlight_language = "none"
html_theme = "alabaster"
html_theme_options = {"page_width": "1100px"}
html_show_copyright = False
