"""The choice: pure functions from sites and prices to a plan. No graph is touched here."""
