"""Pictures of a network: the layers drawn from what they are."""
