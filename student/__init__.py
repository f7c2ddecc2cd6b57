"""A student trainer that replays a label store's views."""
