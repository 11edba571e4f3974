"""One decoder for all families, built from a frozen configuration."""
