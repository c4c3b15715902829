"""The fastest equivalent form against the engines people use, side by side in one run."""
