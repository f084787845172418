"""The experiments of the founding papers, one command each: `python -m benchmarks.experiments rochette | lee-kifer | beltran`."""
