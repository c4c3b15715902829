"""The model zoo: convert many networks, verify them, convert them back, and make them dense; record every outcome.

`python -m bench.zoo` (or `make zoo`) runs it and writes `bench/results/zoo.json`; `python -m bench.zoo.report`
renders that file as `docs/zoo.md`; `python -m bench.zoo.smallest` selects the timm models again.
"""
