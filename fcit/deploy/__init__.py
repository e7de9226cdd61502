"""`fcit deploy`: what an operator and its sites need to run a federation on separate machines."""
