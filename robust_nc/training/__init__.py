"""One run: the step of each mode, the epoch around it, and how a run is saved and resumed."""
