"""Recording attention mass during generation, and the trace that comes out."""
