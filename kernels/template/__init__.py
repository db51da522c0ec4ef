"""An op that does nothing, complete in every respect: the one to copy (see ../README.md).

Only its tests import it.
"""
