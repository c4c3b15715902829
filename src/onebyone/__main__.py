"""`python -m onebyone` runs the command line, also if the script `onebyone` is not on the PATH."""

from onebyone.cli.main import run

if __name__ == "__main__":
    run()
