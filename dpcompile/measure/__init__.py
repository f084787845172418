"""What one option of one site really costs here: its nodes taken out of the graph, run on operands of the real sizes."""
