"""Functions of tensors that compute per-example norms and clipped sums, one file per kind of site.

They become nodes `dp.<name>` of the rewritten graph. Eager execution calls them as they are. For inductor
they are inlined into ATen by make_fx; where the fastest eager form cannot be traced with a free batch size (a
loop over examples), the module's table TRACEABLE names the form that can.
"""
