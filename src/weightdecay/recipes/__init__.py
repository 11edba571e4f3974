"""Published systems as data: every value with its source and status."""
