"""The figures: each a function from the plain data and a width in points to a scene."""
