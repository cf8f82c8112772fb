"""Facts that pyinfra lacks: each answers all that one operation asks, in one command."""
