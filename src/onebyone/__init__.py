"""onebyone: fully connected layers and 1×1 convolutions, interchanged and proven."""
