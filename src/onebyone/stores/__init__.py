"""Images that are read by region, and score maps that are written by region, in the formats that people have.

A `source` reads a region of an image of any size without reading the whole. A `sink` writes a region of a score map
and says which regions are durable, so that an interrupted scan goes on. `placement` relates their pixels to each
other and to the world. No deep-learning framework is imported here; every optional library is imported in the one
file that wraps it.
"""
