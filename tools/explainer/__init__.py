"""Makes what the page "Are 1×1 convolutions the same as fully connected layers?" shows: its network and its claims."""
