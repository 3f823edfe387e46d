"""Many runs compared: in figures, in tables, and against the claims of the paper."""
