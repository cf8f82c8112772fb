"""The vendors' package repositories, and the source and version of each engine."""
