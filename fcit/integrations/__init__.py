"""Other libraries' ways of doing what fcit does: their training loops as a client's."""
