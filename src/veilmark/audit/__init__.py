"""What leaked: attacks on what the server of a federation saw."""
