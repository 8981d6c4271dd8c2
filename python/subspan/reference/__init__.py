"""Every op as its paper states it, in float64 NumPy: what the tests compare with."""
