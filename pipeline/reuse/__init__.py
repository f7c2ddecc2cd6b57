"""Tools for stores that exist: compare, describe, join, extend and thin them."""
