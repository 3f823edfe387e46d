"""A checkpoint measured: one function for each type of row, and the sweep that asks for them."""
