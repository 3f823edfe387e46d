"""What networks see: data sets in memory, and the kinds of input that are made of them."""
