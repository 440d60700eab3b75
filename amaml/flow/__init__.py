"""The inner loop as a gradient flow: the equation, how it is solved, how it is transposed."""
