"""Generation made fast: the same function as `trainer.generate`, for one batch size at a time."""
