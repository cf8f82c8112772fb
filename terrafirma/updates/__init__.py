"""Security updates, and the windows for restarts and reboots."""
