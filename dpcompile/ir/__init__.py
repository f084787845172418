"""The words of the compiler: the joint graph, the example-axis lattice, sites, costs, printer, verifier and errors."""
