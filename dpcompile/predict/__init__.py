"""Seconds and bytes of any graph of the step, node by node, at any batch size; nothing is run."""
