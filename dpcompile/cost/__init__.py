"""Seconds: a hardware row, a roofline over it, and the sizes of a site as numbers."""
