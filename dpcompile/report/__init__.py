"""Plan and measurements as text a person reads."""
