"""The engine beside other engines, and its load generator beside another."""
