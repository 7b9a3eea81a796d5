"""A service over a bundle: one call answers for every head. Needs the extra `serve`."""
