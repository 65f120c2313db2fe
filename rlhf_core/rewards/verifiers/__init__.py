"""Rewards that are checked, a kind a file; beside them what several share: where the answer is, time limits, a process apart."""
