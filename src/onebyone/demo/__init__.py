"""The whole job on real data, once: train a classifier, turn it into a dense detector, prove it, and show it."""

from onebyone.demo.run import run

__all__ = ["run"]
