"""Security updates, windows for a restart and for a reboot."""
