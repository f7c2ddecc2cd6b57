"""Where bytes lie: local folders, object storage, and the cache between them."""
