"""A deployed network's units as Triton kernels; what needs Triton to be there is read where it is called."""
