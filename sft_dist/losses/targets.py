"""What targets hold beside classes. Cached examples contain it, so it stands apart from the losses, which may change freely."""

IGNORED = -100  # target of a position that has none, as in torch and transformers
