"""Slide files -> pixels at any physical resolution, and the sheet that names them."""
