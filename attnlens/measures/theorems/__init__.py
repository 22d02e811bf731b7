"""How much of the decay of attention to the image follows from growing key counts alone."""
