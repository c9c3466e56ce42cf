"""Data sets as loaders with one interface: CIFAR and digits in memory, ImageNet from files.

The flags choose the data set; training and evaluation see only batches of (images, labels).
"""
