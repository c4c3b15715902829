"""A complete example on real data: train a classifier, convert it to a dense detector, verify it, show the results."""

from onebyone.demo.pipeline import run

__all__ = ["run"]
