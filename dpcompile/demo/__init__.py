"""The main job on real data: two small models compiled, explained, timed, trained and verified."""
