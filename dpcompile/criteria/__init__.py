"""Which part of the parameters is trained: pruning before training and dropping of gradients (Adamczewski, He, Park,
"Pre-Pruning and Gradient-Dropping Improve Differentially Private Image Classification", arXiv:2306.11754)."""
