"""Package sources of the vendors, and which versions of the engines come from where."""
