"""The passes of a deployed network in C++, for a CPU: `passes.cpp`, its library, and its calls on tensors.

They compute what the functions of the same name do in `deployment.fused` and `analysis`, to the last bit of a spike.
"""
