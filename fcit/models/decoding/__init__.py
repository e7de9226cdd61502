"""Greedy answers of a batch: a prompt's keys and values are computed once, then one token a row and step."""
