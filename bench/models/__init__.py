"""Benchmark of `onebyone.tune` against widely used engines, interleaved in one run."""
