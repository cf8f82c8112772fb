"""Code that the task files share: typed settings, and facts and operations that pyinfra lacks."""
