"""`python -m onebyone`: the command line, also where its script is not on the path."""

from onebyone.cli.main import run

if __name__ == "__main__":
    run()
