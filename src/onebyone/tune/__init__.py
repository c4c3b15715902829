"""The fastest equivalent form of a network on the machine at hand."""
