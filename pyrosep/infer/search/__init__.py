"""Searching for the sources at falling noise levels, as a start of chains."""
