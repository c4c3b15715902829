"""The model zoo: every network converted, proven, brought back and made dense, with every outcome recorded.

`python -m bench.zoo` (or `make zoo`) runs it and writes `bench/results/zoo.json`; `python -m bench.zoo.report`
renders that file as `docs/zoo.md`; `python -m bench.zoo.smallest` chooses the timm models anew.
"""
