"""Comparing arms on the same work: what they are given, how they take turns, what is measured of each, what follows from it."""
