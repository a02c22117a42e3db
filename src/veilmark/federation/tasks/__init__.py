"""Tasks of a federation: what is learned."""
