"""`fcit doctor --config`: what a run needs, whether it fits, how long it takes."""
