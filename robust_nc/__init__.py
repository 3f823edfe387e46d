"""Neural collapse of robustly trained networks: all that the scripts are made of."""
