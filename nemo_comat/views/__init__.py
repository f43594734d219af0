"""Views: what COMAT does, to look at.

`description` says it in words, `plot` draws an alignment, and `pictures` draws some while a model trains.
"""
