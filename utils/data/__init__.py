"""Data sets as loaders with one interface: CIFAR and digits in memory, ImageNet from files.

The flags choose; whoever trains or evaluates sees only batches of (images, labels).
"""
