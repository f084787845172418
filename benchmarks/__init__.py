"""Time and memory of one private step beside other libraries; `make bench`."""
