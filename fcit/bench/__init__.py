"""Many runs from one file, and the table that compares them (``fcit bench``)."""
