"""Changes to who reaches a host, which undo themselves unless a new login proves them."""
