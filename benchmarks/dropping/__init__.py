"""Accuracy, time, memory and noise when a part of the parameters is trained: `make bench-dropping`."""
