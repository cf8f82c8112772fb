"""What the task files share: typed settings, facts and operations that pyinfra lacks."""
