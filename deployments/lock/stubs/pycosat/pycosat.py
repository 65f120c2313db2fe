"""Stands in for the solver, which is published as C only; whoever calls it is told."""


def solve(*_, **__):
    raise ImportError("the solver pycosat is not installed here, and zebra puzzles are made with it: pip install pycosat==0.6.6 takes a C compiler")


itersolve = solve
