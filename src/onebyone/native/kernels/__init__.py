"""Kernels of onebyone's own, compiled where they are used."""
