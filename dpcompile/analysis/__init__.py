"""Facts about the joint graph, read-only: where the examples lie, which sites there are, what is alive when."""
