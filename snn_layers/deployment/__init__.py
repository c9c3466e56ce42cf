"""Fast inference, exact to the spike: units as convolutions of integers with a fused neuron after them."""
