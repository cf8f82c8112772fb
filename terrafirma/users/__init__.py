"""The accounts of a host."""
