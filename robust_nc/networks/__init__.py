"""A network around any architecture: folded, looked into by block, loaded from a checkpoint."""
