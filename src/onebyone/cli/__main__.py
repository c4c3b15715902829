"""`python -m onebyone.cli`: the command line, also where its script is not on the path."""

from onebyone.cli.main import run

run()
