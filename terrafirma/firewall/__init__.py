"""The firewall: what of a host is open, to whom, and the proof of it from outside."""
